"""How good the model is, on pictures that no training step saw, each figure with its interval.

    python evaluate.py [--split development|validation|final] [--scenes 960] [--dtype q8]
    python evaluate.py --questions 300

Every picture goes the whole way: tinyllm's encoder, the connector, and a greedy answer of the
language model, which is searched for the right words. What is judged beside it is the connector's
own reading, a linear probe on the class token, and plain chance. Answers are kept in
.packed/answers-<split>.jsonl, so that an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import re
import zlib
from collections import defaultdict
from typing import Any

import numpy as np
from answers import CANT_TELL, content, question
from data import CACHE, concepts
from features import DIM, features
from scenes import COLOURS, SHAPES, Scene, Split, contents, held_out, scene

import tinyllm
from tinyllm.vision.connector import NOTHING, NUMBERS

QUESTIONS = (
    "What's in this image?", "Describe what you see in this image.", "What is in this picture?",
    "What do you see?",
)  # fmt: skip
Marks = dict[str, list[bool]]


def interval(right: int, n: int) -> str:
    """A share with Wilson's 95 % interval."""
    if not n:
        return "no scenes"
    p, z = right / n, 1.96
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    reach = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = 100 * max(0.0, middle - reach), 100 * min(1.0, middle + reach)
    return f"{100 * p:.0f} % ({low:.0f} … {high:.0f}; n = {n})"


def says(text: str, words: str) -> bool:
    """Whether a text holds these words whole, whatever their case; a plural s is no harm."""
    return re.search(rf"(?<!\w){re.escape(words.lower())}(s|es)?(?!\w)", text.lower()) is not None


def head_noun(name: str) -> str:
    """ "face" of "smiling face with sunglasses"."""
    return re.split(" (?:with|of|in|on|and|from|behind|without|at) ", name)[0].split()[-1]


def names_something(text: str) -> bool:
    """Whether a text claims to see anything that has a name."""
    return any(says(text, name) for name in (*(c.name for c in concepts()), *SHAPES))


def judge(what: Scene, text: str, tally: Marks) -> None:
    """Mark one answer, by what was in the picture."""
    things = [thing.words for thing in what.things]
    shapes = what.things[0].colour is not None if what.things else False
    if what.kind == "nothing":
        blank = "blank" if what.background else "noise and patterns"
        tally[f"names something where there is nothing: {blank}"].append(names_something(text))
        return
    if what.background and what.kind != "two":
        tally["background"].append(f"{what.background} background" in text.lower())
    if what.kind == "one" and shapes:
        thing = what.things[0]
        new = held_out(str(thing.colour), thing.name)
        tally[f"colour and shape, {'unseen' if new else 'seen'} pair"].append(says(text, things[0]))
    elif what.kind == "one":
        tally["exact name"].append(says(text, things[0]))
        tally["head noun"].append(says(text, head_noun(things[0])))
    elif what.kind == "count":
        number = NUMBERS[len(things)]
        tally[f"number, of {'shapes' if shapes else 'emoji'}"].append(says(text, number))
        tally["number"].append(says(text, number))
    else:
        of = "shapes" if shapes else "emoji"
        both = all(says(text, thing) for thing in things)
        tally[f"both of two, {of}"].append(both)
        tally["both of two"].append(both)
        tally[f"at least one of two, {of}"].append(any(says(text, thing) for thing in things))
        if both:
            left, _, right = text.lower().partition("on the left")
            right_sides = says(left, things[0]) and says(right, things[1])
            tally["sides, where both are named"].append(right_sides)


def answers(options: argparse.Namespace) -> list[dict[str, Any]]:
    """For each scene the caption and the answer, from what is kept or from the model."""
    path = CACHE / f"answers-{options.split}.jsonl"
    if options.afresh:
        path.unlink(missing_ok=True)
    kept: dict[int, dict[str, Any]] = {}
    if path.is_file():
        kept = {line["scene"]: line for line in map(json.loads, path.read_text().splitlines())}
    share, of = map(int, options.share.split("/"))
    missing = [i for i in range(options.scenes) if i not in kept and i % of == share]
    if missing:
        lm = tinyllm.load("smollm2-135m-vision", dtype=options.dtype, threads=options.threads)
        assert lm.vision is not None
    with path.open("a") as file:
        for i in missing:
            caption = lm.vision.embedder.read(np.asarray(scene(i, options.split)[1])).caption
            asked = QUESTIONS[i // 16 % len(QUESTIONS)]
            kept[i] = {"scene": i, "caption": caption, "question": asked}
            kept[i]["answer"] = ask(lm, asked, caption)
            file.write(json.dumps(kept[i], ensure_ascii=False) + "\n")
            file.flush()
    return [kept[i] for i in range(options.scenes) if i in kept]


def ask(lm: tinyllm.LM, question: str, caption: str) -> str:
    """The greedy answer about a picture that the connector says this of."""
    assert lm.vision is not None
    prompt = lm.prompt(question, [np.zeros((8, 8, 3), np.uint8)])
    rows = lm.vision.embedder.connector.rows(caption)  # in place of that picture's
    prompt = dataclasses.replace(prompt, image_rows=rows)
    return lm.generate(prompt, max_tokens=60, temperature=0).text.strip()


def questions(options: argparse.Namespace) -> None:
    """Sentences as the connector writes them, questions of every kind, and how many of the greedy
    answers are the wanted one, word for word; no picture is needed."""
    lm = tinyllm.load("smollm2-135m-vision", dtype=options.dtype, threads=options.threads)
    marks: Marks = defaultdict(list)
    for i in range(options.questions):
        rng = np.random.default_rng([i, zlib.crc32(b"questions")])
        what = content(rng)
        asked = question(what, rng)
        answer = ask(lm, asked.question, what.caption)
        marks[asked.kind].append(answer == asked.answer)
        if answer != asked.answer:
            print(f"{asked.kind}: {what.caption} {asked.question} {answer}", flush=True)
    print("| question | answered as wanted |\n|---|---|")
    for kind, right in sorted(marks.items()):
        print(f"| {kind} | {interval(sum(right), len(right))} |")


def linear_probe(split: Split, n_train: int, n: int) -> str:
    """Naming single things by ridge regression on the class token of layer 11."""

    def single(which: Split, count: int) -> tuple[np.ndarray, np.ndarray]:
        scenes = contents(which, count)
        place = {concept.name: i for i, concept in enumerate(concepts())}
        index = [i for i, s in enumerate(scenes) if s.kind == "one" and not s.things[0].colour]
        rows = features(which, count)[0][index].astype(np.float32)
        labels = [place[scenes[i].things[0].name] for i in index]
        return rows[:, -DIM:], np.array(labels)  # the last of CLASS_LAYERS

    x, y = single("train", n_train)
    mean = x.mean(0)
    x = x - mean
    gram = x.T @ x
    gram += 0.03 * np.trace(gram) / len(gram) * np.eye(len(gram))
    weight = np.linalg.solve(gram, x.T @ np.eye(len(concepts()))[y])
    x, y = single(split, n)
    found = ((x - mean) @ weight).argmax(1) == y
    return interval(int(found.sum()), len(y))


def pictures(options: argparse.Namespace) -> None:
    """Show the pictures of a split, and print how often the answer and the reading are right."""
    spoken, read = defaultdict(list), defaultdict(list)
    faithful = []
    scenes = contents(options.split, options.scenes)
    lines = answers(options)
    for line in lines:
        what = scenes[line["scene"]]
        judge(what, line["answer"], spoken)
        judge(what, line["caption"], read)
        copied = line["caption"].rstrip(".") in line["answer"]
        unsure = line["caption"] == NOTHING and CANT_TELL in line["answer"]
        faithful.append(copied or unsure)
    print(f"| {options.split}, {len(lines)} pictures | answer | the connector's reading |")
    print("|---|---|---|")
    for name in sorted(spoken):
        shares = [interval(sum(t[name]), len(t[name])) for t in (spoken, read)]
        print(f"| {name} | {shares[0]} | {shares[1]} |")
    print(f"| the answer says what the caption says | {interval(sum(faithful), len(faithful))} | |")
    chance = 100 / len(concepts()), 100 / (len(COLOURS) * len(SHAPES)), 100 / 5
    print("plain chance: name {:.1f} %, colour and shape {:.1f} %, number {:.0f} %".format(*chance))
    if options.probe:
        found = linear_probe(options.split, options.probe, options.scenes)
        print(f"linear probe on the class token, exact name: {found}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--split", choices=["development", "validation", "final"], default="development"
    )
    parser.add_argument("--scenes", type=int, default=960)
    parser.add_argument("--dtype", choices=["f32", "bf16", "q8", "q4"], default="q8")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--share", default="0/1", help="answer the k-th of n shares, as in 0/3")
    parser.add_argument("--afresh", action="store_true", help="forget kept answers")
    parser.add_argument("--probe", type=int, default=0, help="training scenes of a linear probe")
    parser.add_argument("--questions", type=int, default=0, help="ask so many, without pictures")
    options = parser.parse_args()
    (questions if options.questions else pictures)(options)


if __name__ == "__main__":
    main()
