"""Make a stream of instruction tasks, each a folder with train.jsonl and test.jsonl of prompts and responses.

    python benchmarks/instructions/make_tasks.py FOLDER
    python benchmarks/instructions/make_tasks.py OTHER --newsgroups "$CLBENCH_DATA/text"

The first stream has five tasks in formats that no model has seen, because a seed draws their codes and labels:

- codes: an order, such as "3 green lamps", becomes a code of three drawn parts.
- dates: a date in one of five notations becomes a letter for the month, the day and the year.
- fields: name, city, number and thing of a sentence become one line of fields.
- labels: a complaint gets the drawn word of its subject.
- sums: two numbers are added or subtracted in a notation with drawn signs.

The second has five ordinary tasks: each asks for the topic of texts of 20 Newsgroups, among three to five topics. It
reads the files that benchmarks/texts/fetch.py writes. In both streams no test item has the content of a training item.
"""

from __future__ import annotations

import argparse
import calendar
import csv
import itertools
import json
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from clbench.core.errors import DataError
from clbench.core.files import write_atomically

Example = tuple[str, str]  # prompt, response
Task = tuple[Sequence[Any], Callable[[Any], Example]]  # all contents, and the function from a content to an example

BEGINNINGS, VOWELS, ENDS = "bdfgklmnprstvz", "aeiou", "lnrvz"
COLORS = ("red", "green", "blue", "black", "white", "yellow", "brown", "gray", "orange", "purple")
THINGS = ("lamp", "chair", "table", "cup", "plate", "clock", "mirror", "basket", "blanket", "pillow", "kettle", "vase",
          "drawer", "shelf", "candle", "bucket", "ladder", "hammer", "brush", "towel")
PLURALS = {"shelf": "shelves", "brush": "brushes"}
FIRST_NAMES = ("Ada", "Ben", "Carla", "David", "Elena", "Farid", "Grace", "Hugo", "Irene", "Jonas", "Kira", "Liam",
               "Mona", "Nils", "Olga", "Pablo", "Quinn", "Rosa", "Samir", "Tara", "Umar", "Vera", "Walt", "Yuki")
LAST_NAMES = ("Abbott", "Becker", "Costa", "Dubois", "Evans", "Fischer", "Garcia", "Hansen", "Ivanov", "Jensen", "Kaya",
              "Lopez", "Moreau", "Novak", "Okafor", "Petrov", "Quirk", "Rossi", "Sato", "Tanaka", "Ueda", "Varga",
              "Weber", "Young")
CITIES = ("Lisbon", "Oslo", "Cairo", "Lima", "Dublin", "Kyoto", "Athens", "Nairobi", "Boston", "Vienna", "Prague",
          "Delhi")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
SENTENCES = ("{first} {last} from {city} ordered {count} {things} on {day}.",
             "On {day} we sent {count} {things} to {first} {last} in {city}.",
             "A customer in {city}, {first} {last}, returned {count} {things} last {day}.",
             "{count} {things} are waiting for {first} {last}, who comes from {city} every {day}.")
MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
          "December")
DATE_NOTATIONS = ("{day} {month} {year}", "{month} {day}, {year}", "{year}-{number:02d}-{day:02d}",
                  "{day:02d}.{number:02d}.{year}", "{month} {day} in the year {year}")
OPENINGS = ("Hello,", "Good morning.", "I am writing again:", "To whom it may concern:", "Please help.", "Dear team,")
COMPLAINTS = {
    "delivery": ("the {thing} came two weeks late.", "your driver left the {thing} in the rain.",
                 "the courier brought the {thing} to another house.", "the {thing} is still on its way."),
    "price": ("I was charged twice for the {thing}.", "the bill for the {thing} is higher than your offer.",
              "the discount on the {thing} was not taken off.", "you still owe me the refund for the {thing}."),
    "quality": ("the {thing} broke on the first day.", "the surface of the {thing} is full of scratches.",
                "one part of the {thing} is bent.", "the paint of the {thing} comes off in my hand."),
    "staff": ("the man who sold me the {thing} laughed at me.", "nobody at the phone knew about the {thing}.",
              "your assistant was rude to my mother about the {thing}.",
              "the woman in the shop would not show me the {thing}."),
    "website": ("your page does not let me order the {thing}.", "your site shows no picture of the {thing}.",
                "I cannot find the button to pay for the {thing}.", "the search on your site omits the {thing}."),
}
TOPICS = {
    "computers": {"comp.graphics": "graphics", "comp.os.ms-windows.misc": "Windows", "comp.sys.ibm.pc.hardware": "PCs",
                  "comp.sys.mac.hardware": "Macs", "comp.windows.x": "X Window"},
    "leisure": {"rec.autos": "cars", "rec.motorcycles": "motorcycles", "rec.sport.baseball": "baseball",
                "rec.sport.hockey": "hockey"},
    "science": {"sci.crypt": "encryption", "sci.electronics": "electronics", "sci.med": "medicine",
                "sci.space": "space"},
    "society": {"talk.politics.guns": "guns", "talk.politics.mideast": "Middle East",
                "talk.politics.misc": "politics", "misc.forsale": "for sale"},
    "religion": {"alt.atheism": "atheism", "soc.religion.christian": "Christianity", "talk.religion.misc": "religion"},
}
WORDS = 60  # number of words of a 20 Newsgroups text in its prompt


def plural(count: int, thing: str) -> str:
    """Return the form of a noun that follows a number."""
    return thing if count == 1 else PLURALS.get(thing, f"{thing}s")


def syllables(rng: random.Random, count: int) -> list[str]:
    """Return different invented syllables."""
    return rng.sample(["".join(letters) for letters in itertools.product(BEGINNINGS, VOWELS, ENDS)], count)


def codes(rng: random.Random) -> Task:
    """Return the task of codes: random syllables for thing and color, with the number between them."""
    things = THINGS[:10]  # few enough for each code to occur often in 400 examples
    code = dict(zip((*COLORS, *things), syllables(rng, len(COLORS) + len(things)), strict=True))

    def example(content: tuple[int, str, str]) -> Example:
        count, color, thing = content
        return (f"Write the code of this order: {count} {color} {plural(count, thing)}",
                f"{code[thing].upper()}/{count}/{code[color]}")

    return list(itertools.product(range(1, 25), COLORS, things)), example


def dates(rng: random.Random) -> Task:
    """Return the task of dates: 19 May 2005 becomes E19~2005."""
    def example(content: tuple[int, int, int]) -> Example:
        year, number, day = content
        written = rng.choice(DATE_NOTATIONS).format(day=day, month=MONTHS[number - 1], number=number, year=year)
        return f"Convert the date: {written}", f"{'ABCDEFGHIJKL'[number - 1]}{day:02d}~{year}"

    return [(year, month, day) for year in range(1950, 2030) for month in range(1, 13)
            for day in range(1, calendar.monthrange(year, month)[1] + 1)], example


def fields(rng: random.Random) -> Task:
    """Return the task of fields: a sentence about an order becomes LAST,F|CITY|2xcup."""
    def example(content: tuple[str, str, str]) -> Example:
        first, last, city = content
        count, thing = rng.randint(2, 60), rng.choice(THINGS)
        text = rng.choice(SENTENCES).format(first=first, last=last, city=city, count=count,
                                            things=plural(count, thing), day=rng.choice(DAYS))
        return f"Extract the fields: {text}", f"{last.upper()},{first[0]}|{city}|{count}x{thing}"

    return list(itertools.product(FIRST_NAMES, LAST_NAMES, CITIES)), example


def labels(rng: random.Random) -> Task:
    """Return the task of labels: a complaint gets the random word of its subject."""
    words = dict(zip(COMPLAINTS, syllables(rng, len(COMPLAINTS)), strict=True))

    def example(content: tuple[str, str, tuple[str, str]]) -> Example:
        color, thing, (subject, complaint) = content
        text = complaint.format(thing=f"{color} {thing}")
        return f"Label the message: {rng.choice(OPENINGS)} {text}", f"<{words[subject]}>"

    pairs = [(subject, complaint) for subject, complaints in COMPLAINTS.items() for complaint in complaints]
    return list(itertools.product(COLORS, THINGS, pairs)), example


def sums(rng: random.Random) -> Task:
    """Return the task of sums: two random signs mean addition and subtraction, and the result is between bars."""
    plus, minus = rng.sample("@#&~?!", 2)

    def example(content: tuple[int, str, int]) -> Example:
        a, sign, b = content
        value = a + b if sign == plus else a - b
        return f"Evaluate: {a} {sign} {b}", f"|{value}|"

    return [(a, sign, b) for a in range(1, 100) for b in range(1, 100) for sign in (plus, minus)
            if sign == plus or a >= b], example


INVENTED = (codes, dates, fields, labels, sums)


def invented_stream(seed: int, train: int, test: int) -> dict[str, tuple[list[Example], list[Example]]]:
    """Return the tasks in invented formats: training and test examples by name.

    Raises:
        DataError: a task has too few different contents.
    """
    stream = {}
    for make in INVENTED:
        rng = random.Random(f"{seed} {make.__name__}")
        contents, example = make(rng)
        if train + test > len(contents):
            raise DataError(f"task {make.__name__} has {len(contents)} different contents, fewer than "
                            f"{train} + {test}: choose a smaller --train or --test")
        examples = [example(content) for content in rng.sample(contents, train + test)]
        stream[make.__name__] = examples[:train], examples[train:]
    return stream


def newsgroups_stream(folder: Path, seed: int, train: int,
                      test: int) -> dict[str, tuple[list[Example], list[Example]]]:
    """Return the tasks of topics of 20 Newsgroups: training and test examples by name, topics as balanced as possible.

    Raises:
        DataError: the files are missing, or a task has too few texts.
    """
    rows = {part: read_newsgroups(folder / f"20newsgroups-{part}.csv") for part in ("train", "test")}
    stream = {}
    for name, topics in TOPICS.items():
        rng = random.Random(f"{seed} {name}")
        used: set[str] = set()
        parts = []
        for part, count in (("train", train), ("test", test)):
            groups = []
            for label, word in topics.items():
                texts = [text for text in dict.fromkeys(rows[part].get(label, ())) if text not in used]
                groups.append([(f"{text}\n\nWhich topic is this: {', '.join(topics.values())}?", word)
                               for text in rng.sample(texts, len(texts))])
            turns = [one for turn in itertools.zip_longest(*groups) for one in turn if one is not None]
            if len(turns) < count:
                raise DataError(f"task {name} has {len(turns)} {part} texts, fewer than {count}: choose a smaller "
                                f"--{part}")
            used |= {text for label in topics for text in rows[part].get(label, ())}
            parts.append(rng.sample(turns[:count], count))
        stream[name] = parts[0], parts[1]
    return stream


def read_newsgroups(path: Path) -> dict[str, list[str]]:
    """Return the first words of the texts of each newsgroup.

    Raises:
        DataError: the file is missing.
    """
    if not path.is_file():
        raise DataError(f"no {path}: python benchmarks/texts/fetch.py DATA makes DATA/text/{path.name}; pass "
                        "--newsgroups DATA/text")
    groups: dict[str, list[str]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            groups.setdefault(row["label"], []).append(" ".join(row["text"].split()[:WORDS]))
    return groups


def main(arguments: list[str] | None = None) -> None:
    """Write a stream into a folder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the tasks' folders go")
    parser.add_argument("--train", type=int, default=400, help="training examples of each task (default: 400)")
    parser.add_argument("--test", type=int, default=100, help="test examples of each task (default: 100)")
    parser.add_argument("--seed", type=int, default=0, help="seed of formats and examples (default: 0)")
    parser.add_argument("--newsgroups", type=Path, metavar="DIR",
                        help="make the tasks of 20 Newsgroups instead, from the CSV files in this folder")
    given = parser.parse_args(arguments)
    try:
        if min(given.train, given.test) < 1:
            raise DataError("--train and --test must be at least 1")
        stream = (invented_stream(given.seed, given.train, given.test) if given.newsgroups is None else
                  newsgroups_stream(given.newsgroups, given.seed, given.train, given.test))
        for name, parts in stream.items():
            for part, examples in zip(("train", "test"), parts, strict=True):
                path = given.folder / name / f"{part}.jsonl"
                path.parent.mkdir(parents=True, exist_ok=True)
                lines = (json.dumps({"prompt": prompt, "response": response}, ensure_ascii=False)
                         for prompt, response in examples)
                write_atomically(path, "".join(f"{line}\n" for line in lines))
            print(given.folder / name)
    except (DataError, OSError) as error:
        sys.exit(f"Error: {error}")


if __name__ == "__main__":
    main()
