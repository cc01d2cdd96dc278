"""The provider `local` of embedkit: sentence-transformers on torch. embedkit finds `plugin` by itself."""
