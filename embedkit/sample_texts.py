"""
English prose to measure with: what people say in meetings, cut into texts of mixed lengths, and questions about it.

Owns the words. The same texts come out on every machine; none is like another. Imports nothing of embedkit.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable

_SHORTEST, _LONGEST = 6, 180
"""Lengths of texts, in words: about 10 to 230 tokens, half of them longer than 115."""

_SLOT = re.compile(r"\{(\w+)\}")

_WORDS = {
    "who": "Marta,Jonas,our supplier,the night shift,Priya,the auditor,Tom from billing,the new tenant,a customer,"
    "Elif,the board,my neighbour,the library,the school,Doctor Okafor,the workshop,the harbour office,the second team",
    "what": "the delivery plan,the roof repair,the holiday rota,the water meter,the invoice from spring,"
    "the search page,the ticket machine,the translation,the spare battery,the parking permit,"
    "the heating contract,the backup disk,the seed catalogue,the fire drill,the lease,"
    "the measuring station,the bus timetable",
    "when": "on Monday,last winter,before lunch,after the second meeting,at the end of the quarter,this morning,"
    "two weeks ago,in early June,around midnight,during the storm,on the first of the month,just after the release",
    "where": "in the basement,near the station,at the warehouse,on the third floor,behind the counter,"
    "in the shared folder,at the clinic,by the river gate,in the old system,on the ferry,in the archive",
    "quality": "late,cheaper than we thought,hard to read,nearly finished,out of date,surprisingly good,too heavy,"
    "missing a page,longer than agreed,out of stock,still under warranty,different in every town",
    "act": "call,check the numbers,write it down,ask for a refund,measure it again,move the date,order a replacement,"
    "take photographs,lock the door,split the cost,send a reminder,start over",
    "number": "three,seven,twelve,about forty,ninety,two hundred and ten,fifteen hundred,hardly any,nineteen",
    "thing": "boxes,pages,complaints,passengers,samples,signatures,trees,orders,kilometres,windows,messages,chairs",
}
_CHOICES = {slot: words.split(",") for slot, words in _WORDS.items()}

_SENTENCES = """
Okay, so {who} wrote {when} that {what} is {quality}.
I think we should {act} before anybody looks at {what} again.
{number} {thing} were left {where}, and nobody could say why.
Right, and {who} said that we can {act} {when} if it helps.
What I heard is that {what} was {quality}, but only {where}.
Let me go back to {what}, because that is where the money went.
We counted {number} {thing} {when}, which is more than {who} had expected.
Yes, exactly.
To be honest, {what} has been {quality} for as long as I have worked here.
If {who} agrees, we {act} and tell everybody {when}.
There was a note {where} saying that {what} must not be moved until somebody has found the time to {act}.
Sorry, could you repeat the part about {what}?
The short version: {number} {thing}, one day of work, and then we {act}.
{who} asked twice whether {what} is {quality}, and I did not have an answer either time.
That reminds me of the year when {what} was lost {where} and {who} had to {act}.
We can live with that, I suppose.
On the other hand, {number} {thing} a week is not nothing, and {who} pays for each of them.
So the decision is to {act} first, and to look at {what} {when}, when {who} is back.
Nobody has touched {what} since then.
My worry is not that {what} is {quality}; my worry is that we learn of it from {who}.
""".strip().splitlines()

_QUESTIONS = """
who found {what} {where} {when}
why is {what} {quality}
how many {thing} did {who} count {when}
when will {who} {act}
what did {who} say about {what}
where are the {number} {thing} that were ordered {when}
should we {act} or wait for {who}
is {what} still {quality} according to {who}
""".strip().splitlines()


def build_texts(n: int) -> list[str]:
    """
    Make texts.

    Args:
        n: How many; the first of a larger number are the same.

    Returns:
        Texts of 6 to about 200 words, all different.
    """
    generator = random.Random(20)  # noqa: S311  # prose, no secret
    return _collect(n, lambda: _write_text(generator))


def build_queries(n: int) -> list[str]:
    """
    Make questions of about twelve tokens.

    Args:
        n: How many; the first of a larger number are the same.

    Returns:
        Questions, all different.
    """
    generator = random.Random(21)  # noqa: S311  # a corpus, no secret
    return _collect(n, lambda: _fill(_choose(generator, _QUESTIONS), generator))


def _collect(n: int, write: Callable[[], str]) -> list[str]:
    texts: dict[str, None] = {}
    while len(texts) < n:
        texts[write()] = None
    return list(texts)


def _write_text(generator: random.Random) -> str:
    wanted = _SHORTEST + (_LONGEST - _SHORTEST) * generator.random()
    sentences: list[str] = []
    n_words = 0
    while n_words < wanted:
        sentence = _fill(_choose(generator, _SENTENCES), generator)
        sentences.append(sentence[0].upper() + sentence[1:])
        n_words += len(sentence.split())
    return " ".join(sentences)


def _fill(sentence: str, generator: random.Random) -> str:
    return _SLOT.sub(lambda slot: _choose(generator, _CHOICES[slot[1]]), sentence)


def _choose(generator: random.Random, options: list[str]) -> str:
    # Not `choice`: only `random` gives the same numbers in every version of Python.
    return options[int(generator.random() * len(options))]
