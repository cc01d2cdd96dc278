"""`embedkit search`: rank the passages of text files for a query."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from embedkit.api import get_embedder, get_reranker
from embedkit.cli import output
from embedkit.cli.arguments import device_option, find_registry, json_option, profile_option
from embedkit.errors import InputError

if TYPE_CHECKING:
    from embedkit.passages import Hit, Passage

_N_CANDIDATES = 50
"""So many passages are reranked, or as many as are asked for."""

_N_LINES = 8
"""So many lines of a passage are shown on a terminal."""


@click.command(
    "search",
    short_help="Search text files by meaning.",
    help="""
    Search FILES by meaning: they are split into passages, and those nearest to QUERY are shown with file, line and
    score.

    Directories are searched for text files. Nothing is stored: every passage is embedded anew. The score is the cosine
    of query and passage; with ENABLE_RERANKER=true the profile's reranker orders the nearest passages anew, and the
    score is its own.
    """,
    epilog="""
    \b
    Examples:
      embedkit search "how do I switch models" README.md docs
      embedkit --profile mini search "what is a space" docs -k 3 --json
    """,
)
@click.argument("query")
@click.argument("files", nargs=-1, required=True, type=click.Path())
@click.option("-k", "k", type=click.IntRange(min=1), default=5, show_default=True, help="At most so many passages.")
@json_option
@profile_option
@device_option
def search(
    *, query: str, files: tuple[str, ...], k: int, as_json: bool, profile: str | None, device: str | None
) -> None:
    """Rank the passages of text files for a query."""
    from embedkit.passages import rank_passages

    if not query.strip():
        # Before the files are read and the model is loaded for nothing.
        raise InputError("The query is blank.", hint='say what to look for: embedkit search "how do I …" FILES')
    reranker = get_reranker(profile, registry=find_registry())
    with (
        get_embedder(profile, device=device, registry=find_registry()) as embedder,
        output.Progress("reading") as progress,
    ):
        passages = _read_passages(files)
        progress.begin("loading the model")
        embedder.load()
        progress.begin("embedding", len(passages))
        n_candidates = k if reranker is None else max(k, _N_CANDIDATES)
        hits = rank_passages(embedder, query, passages, n_candidates, progress=progress.advance)
        scores = [hit.score for hit in hits]
        ordered_by = "cosine"
        if reranker is not None:
            with reranker:
                progress.begin("reranking")
                ranked = reranker.rerank(query, [hit.passage.text for hit in hits], k)
            hits = [hits[one.position] for one in ranked]
            scores = [one.score for one in ranked]
            ordered_by = f"reranker {reranker.profile.name}"
            output.say(f"The {len(scores)} best of the {n_candidates} nearest, by {ordered_by}.")
        space = embedder.space
    if as_json:
        output.print_json([_to_json(hit, score, ordered_by) for hit, score in zip(hits, scores, strict=True)])
        return
    _print_hits(hits, scores)
    n_files = len({passage.source for passage in passages})
    files_word = "file" if n_files == 1 else "files"
    output.say(
        f"{len(passages):,} passages of {n_files:,} {files_word}; profile {embedder.profile.name}, space {space}"
    )


def _read_passages(files: tuple[str, ...]) -> list[Passage]:
    from embedkit.documents import find_text_files, read_whole
    from embedkit.passages import split_passages

    named = {str(Path(file)) for file in files}
    passages: list[Passage] = []
    for file in find_text_files(files):
        try:
            document = read_whole(file)
        except InputError as error:
            if str(file) in named:
                raise
            # Nobody asked for just this file.
            output.warn(f"left out: {error.problem}")
            continue
        passages += split_passages(document.text, source=document.source)
    if not passages:
        raise InputError(
            f"There is no text in {', '.join(files)}.", hint="name text files, or directories that hold some"
        )
    return passages


def _print_hits(hits: list[Hit], scores: list[float]) -> None:
    if not sys.stdout.isatty():
        for number, (hit, score) in enumerate(zip(hits, scores, strict=True), start=1):
            indented = output.make_printable(hit.passage.text).replace("\n", "\n   ")
            click.echo(f"{number}. {_name(hit)}  {score:.3f}\n   {indented}\n")
        return
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    console = Console(highlight=False)
    indent = 3
    for number, (hit, score) in enumerate(zip(hits, scores, strict=True), start=1):
        console.print(Text.assemble(f"{number}. ", (_name(hit), "bold cyan"), f"  {score:.3f}"))
        lines = Text(output.make_printable(hit.passage.text)).wrap(console, console.width - indent)
        n_hidden = len(lines) - _N_LINES
        shown = Text("\n").join(lines[:_N_LINES] if n_hidden > 1 else lines)
        console.print(Padding(shown, (0, 0, 0, indent)))
        if n_hidden > 1:
            console.print(Padding(Text(f"[{n_hidden} more lines]", style="dim"), (0, 0, 0, indent)))
        console.print()


def _name(hit: Hit) -> str:
    source = "<stdin>" if hit.passage.source == "-" else hit.passage.source
    return f"{source}:{hit.passage.line}"


def _to_json(hit: Hit, score: float, ordered_by: str) -> dict[str, object]:
    return {
        "file": hit.passage.source,
        "line": hit.passage.line,
        "end_line": hit.passage.end_line,
        "score": score,
        "scored_by": ordered_by,
        "cosine": hit.score,
        "passage": hit.passage.text,
    }
