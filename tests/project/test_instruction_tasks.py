"""The script that makes instruction tasks: what it writes, and that responses follow from prompts."""

import csv
import datetime
import importlib.util
import json
import re

import pytest
from helpers import ROOT

spec = importlib.util.spec_from_file_location("make_tasks", ROOT / "benchmarks" / "instructions" / "make_tasks.py")
make_tasks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make_tasks)

NAMES = ["codes", "dates", "fields", "labels", "sums"]


def read(folder, part):
    """Return (prompt, response) of a task's part, and check that each line has these two texts alone."""
    examples = [json.loads(line) for line in (folder / f"{part}.jsonl").read_text().splitlines()]
    assert all(set(one) == {"prompt", "response"} and all(one.values()) for one in examples)
    return [(one["prompt"], one["response"]) for one in examples]


@pytest.fixture(scope="module")
def stream(tmp_path_factory):
    """Return a folder with the default stream."""
    folder = tmp_path_factory.mktemp("stream")
    make_tasks.main([str(folder)])
    return folder


def test_five_tasks_of_400_and_100_different_examples(stream):
    assert sorted(p.name for p in stream.iterdir()) == NAMES
    for name in NAMES:
        train, test = read(stream / name, "train"), read(stream / name, "test")
        assert (len(train), len(test)) == (400, 100)
        assert len({prompt for prompt, _ in train + test}) == 500


def test_a_seed_gives_the_same_files_and_another_seed_other_formats(stream, tmp_path):
    for seed in (0, 1):
        make_tasks.main([str(tmp_path / str(seed)), "--seed", str(seed)])
    for file in sorted(stream.rglob("*.jsonl")):
        inner = file.relative_to(stream)
        assert (tmp_path / "0" / inner).read_bytes() == file.read_bytes()
        assert (tmp_path / "1" / inner).read_bytes() != file.read_bytes()
    labels = {seed: {response for _, response in read(tmp_path / str(seed) / "labels", "train")} for seed in (0, 1)}
    assert labels[0] != labels[1]


def test_codes_of_test_orders_follow_from_the_training_orders(stream):
    def parts(example):
        count, color, thing = re.fullmatch(r"Write the code of this order: (\d+) (\w+) (\w+)", example[0]).groups()
        code = re.fullmatch(r"([A-Z]{3})/(\d+)/([a-z]{3})", example[1]).groups()
        return (count, color, thing.removesuffix("s") if int(count) > 1 else thing), code

    train, test = (list(map(parts, read(stream / "codes", part))) for part in ("train", "test"))
    thing_code, color_code = {}, {}
    for (count, color, thing), (first, number, last) in train:
        assert number == count
        assert thing_code.setdefault(thing, first) == first
        assert color_code.setdefault(color, last) == last
    assert (len(thing_code), len(color_code)) == (10, 10)
    assert len({code.lower() for code in [*thing_code.values(), *color_code.values()]}) == 20
    for (count, color, thing), code in test:
        assert code == (thing_code[thing], count, color_code[color])
    assert not {key for key, _ in train} & {key for key, _ in test}


def test_dates_are_those_of_the_prompts(stream):
    notations = ("%d %B %Y", "%B %d, %Y", "%Y-%m-%d", "%d.%m.%Y", "%B %d in the year %Y")

    def parsed(example):
        text = example[0].removeprefix("Convert the date: ")
        for index, notation in enumerate(notations):
            try:
                return datetime.datetime.strptime(text, notation).date(), index
            except ValueError:
                continue
        raise AssertionError(text)

    used = {"train": set(), "test": set()}
    for part, dates in used.items():
        examples = read(stream / "dates", part)
        for example in examples:
            date, _ = parsed(example)
            dates.add(date)
            letter, day, year = re.fullmatch(r"([A-L])(\d{2})~(\d{4})", example[1]).groups()
            assert datetime.date(int(year), ord(letter) - ord("A") + 1, int(day)) == date
        assert {parsed(example)[1] for example in examples} == set(range(5))
    assert not used["train"] & used["test"]


def test_fields_stand_in_the_sentences(stream):
    people = {"train": set(), "test": set()}
    for part, known in people.items():
        for prompt, response in read(stream / "fields", part):
            last, initial, city, count, thing = re.fullmatch(r"(\w+),(\w)\|(\w+)\|(\d+)x(\w+)", response).groups()
            first = re.search(rf"(\w+) {last.capitalize()}\b", prompt)[1]
            assert first[0] == initial
            assert {"shelf": f"{count} shelves", "brush": f"{count} brushes"}.get(thing, f"{count} {thing}s") in prompt
            assert re.search(rf"\b{city}\b", prompt)
            assert re.findall(r"\d+", prompt) == [count]
            known.add((first, last, city))
    assert not people["train"] & people["test"]


def test_labels_are_one_word_for_each_subject(stream):
    subjects = {"delivery": "late|driver|courier|on its way", "price": "charged|bill|discount|refund",
                "quality": "broke|scratches|bent|paint", "staff": "laughed|phone|rude|woman",
                "website": "your page|site|button"}
    words, messages = {}, {"train": set(), "test": set()}
    for part, known in messages.items():
        for prompt, response in read(stream / "labels", part):
            matched = [name for name, pattern in subjects.items() if re.search(rf"\b({pattern})\b", prompt)]
            assert len(matched) == 1, prompt
            assert re.fullmatch(r"<[a-z]{3}>", response)
            assert words.setdefault(matched[0], response) == response
            known.add(re.search(r"(?:\w[,.:]) ((?:the|your|I|one|you|nobody) .*)", prompt)[1])
    assert len(set(words.values())) == 5
    assert not messages["train"] & messages["test"]
    assert sum(map(len, messages.values())) == 500


def test_sums_are_right_with_one_sign_for_each_operation(stream):
    def parts(example):
        a, sign, b = re.fullmatch(r"Evaluate: (\d+) (\S) (\d+)", example[0]).groups()
        return int(a), sign, int(b), int(re.fullmatch(r"\|(\d+)\|", example[1])[1])

    train, test = (list(map(parts, read(stream / "sums", part))) for part in ("train", "test"))
    signs = {a + b == value: sign for a, sign, b, value in train}
    assert len(set(signs.values())) == 2
    assert all(value == (a + b if sign == signs[True] else a - b) for a, sign, b, value in train + test)
    assert not {one[:3] for one in train} & {one[:3] for one in test}


def test_sizes_are_options_and_have_limits(tmp_path, capsys):
    make_tasks.main([str(tmp_path / "small"), "--train", "7", "--test", "3"])
    assert all((len(read(tmp_path / "small" / name, "train")), len(read(tmp_path / "small" / name, "test"))) == (7, 3)
               for name in NAMES)
    with pytest.raises(SystemExit, match=r"task codes has 2400 different contents, fewer than 2301 \+ 100"):
        make_tasks.main([str(tmp_path / "big"), "--train", "2301"])
    with pytest.raises(SystemExit, match="at least 1"):
        make_tasks.main([str(tmp_path / "none"), "--test", "0"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["small"]


def write_newsgroups(folder, count):
    """Write CSV files as fetch.py does, `count` texts of each newsgroup; the first test text is a training text."""
    topics = [label for task in make_tasks.TOPICS.values() for label in task]
    for part in ("train", "test"):
        with (folder / f"20newsgroups-{part}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            for label in topics:
                for i in range(count):
                    start = f"train {label} 0" if i == 0 else f"{part} {label} {i}"
                    writer.writerow([start + " word" * 100, label])
    return topics


def test_newsgroups_become_prompts_with_a_topic_each(tmp_path):
    assert len(write_newsgroups(tmp_path, 9)) == 20
    for folder in ("a", "b"):
        make_tasks.main([str(tmp_path / folder), "--newsgroups", str(tmp_path), "--train", "15", "--test", "12"])
    topics = [make_tasks.TOPICS[p.name] for p in (tmp_path / "a").iterdir()]
    assert len(topics) == 5 and sum(map(len, topics)) == 20
    for task in (tmp_path / "a").iterdir():
        examples = {part: read(task, part) for part in ("train", "test")}
        assert (len(examples["train"]), len(examples["test"])) == (15, 12)
        for part, lines in examples.items():
            assert (tmp_path / "b" / task.name / f"{part}.jsonl").read_bytes() == (task / f"{part}.jsonl").read_bytes()
            for prompt, response in lines:
                text, question = prompt.split("\n\n")
                assert len(text.split()) == 60
                assert make_tasks.TOPICS[task.name][text.split()[1]] == response
                assert response in question.removeprefix("Which topic is this: ").removesuffix("?").split(", ")
            counts = [[r for _, r in lines].count(word) for word in make_tasks.TOPICS[task.name].values()]
            assert sum(counts) == len(lines) and max(counts) - min(counts) <= 1
        assert not {prompt for prompt, _ in examples["train"]} & {prompt for prompt, _ in examples["test"]}


def test_missing_or_too_few_newsgroups_are_reported(tmp_path):
    with pytest.raises(SystemExit, match=r"no .*20newsgroups-train\.csv: python benchmarks/texts/fetch\.py DATA"):
        make_tasks.main([str(tmp_path / "a"), "--newsgroups", str(tmp_path)])
    write_newsgroups(tmp_path, 3)
    with pytest.raises(SystemExit, match="task computers has 10 test texts, fewer than 11: choose a smaller --test"):
        make_tasks.main([str(tmp_path / "a"), "--newsgroups", str(tmp_path), "--train", "9", "--test", "11"])
