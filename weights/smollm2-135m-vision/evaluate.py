"""How good the connector is, on scenes that no training step saw, each figure with its interval.

    python evaluate.py [--split validation|development] [--scenes 500] [--probe] [--answers]

Heads are judged beside plain chance and, with --probe, a linear probe on the class row (naming
single things). --answers lets the language model answer, greedily, and looks for the right words.
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict

import numpy as np
import torch
from connector import Heads, SoftWords, add_lora, targets
from data import CACHE, concepts
from features import Features, features
from scenes import COLOURS, NUMBERS, SHAPES, Scene, held_out, scene
from torch import Tensor
from train import LORA_NAMES, batch_of, prompt_ids

from tinyllm import fetch
from tinyllm.tokenizer import Tokenizer


def interval(right: int, n: int) -> str:
    """A share with Wilson's 95 % interval."""
    if not n:
        return "no scenes"
    p, z = right / n, 1.96
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    reach = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = 100 * max(0.0, middle - reach), 100 * (middle + reach)
    return f"{100 * p:5.1f} %  ({low:.1f} … {high:.1f}, n = {n})"


def judge_heads(heads: Heads, have: Features, scenes: list[Scene]) -> dict[str, str]:
    """Shares of scenes that the heads read rightly, by kind."""
    with torch.inference_mode():
        logits = heads.eval()(*batch_of(have, np.arange(len(scenes))))
    said = {name: given.argmax(-1) for name, given in logits.items()}
    wanted = targets(scenes)
    tally: dict[str, list[bool]] = defaultdict(list)
    for i, what in enumerate(scenes):
        n = len(what.things)
        named = [bool(said["concept"][i, s] == wanted["concept"][i, s]) for s in range(n)]
        if what.kind == "one":
            tally["name, one thing"].append(named[0])
            tally["head noun, one thing"].append(
                _head_noun(int(said["concept"][i, 0])) == what.things[0].name.split()[-1]
            )
        elif what.kind == "two":
            tally["both names and sides"].append(all(named))
        elif what.kind == "count":
            tally["number"].append(bool(said["number"][i] == n))
        elif what.kind == "shape":
            both = all(said[k][i, 0] == wanted[k][i, 0] for k in ("colour", "shape"))
            thing = what.things[0]
            new = held_out(str(thing.colour), str(thing.shape))
            tally[f"colour + shape, {'unseen' if new else 'seen'} pair"].append(bool(both))
        else:
            tally["nothing named where there is nothing"].append(bool(said["number"][i] == 0))
        tally["background"].append(bool(said["background"][i] == wanted["background"][i]))
    return {name: interval(sum(marks), len(marks)) for name, marks in sorted(tally.items())}


def _head_noun(concept: int) -> str:
    return concepts()[concept].name.split()[-1] if concept < len(concepts()) else ""


def linear_probe(train: tuple[Features, list[Scene]], test: tuple[Features, list[Scene]]) -> str:
    """Naming single things by ridge regression on the class row: what needs no connector."""

    def single(have: Features, scenes: list[Scene]) -> tuple[Tensor, Tensor]:
        index = [i for i, s in enumerate(scenes) if s.kind == "one"]
        labels = torch.tensor([s.things[0].concept for s in scenes if s.kind == "one"])
        x = torch.from_numpy(have.classes[index].astype(np.float32))
        return torch.nn.functional.normalize(x), labels

    x, y = single(*train)
    one_hot = torch.nn.functional.one_hot(y, len(concepts())).float()
    gram = x.T @ x + 0.01 * len(x) * torch.eye(x.shape[1]) / x.shape[1]
    weight = torch.linalg.solve(gram, x.T @ one_hot)
    x, y = single(*test)
    return interval(int(((x @ weight).argmax(-1) == y).sum()), len(y))


@torch.inference_mode()
def judge_answers(heads: Heads, have: Features, scenes: list[Scene]) -> dict[str, str]:
    """Greedy answers of the whole model to the first question, by kind: are the words there?"""
    from transformers import LlamaForCausalLM

    folder = fetch.ensure("smollm2-135m-instruct")
    tokenizer = Tokenizer.from_folder(folder)
    lm = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    words = SoftWords(lm.get_input_embeddings().weight.detach(), tokenizer.encode)
    add_lora(lm, LORA_NAMES)
    saved = torch.load(CACHE / "words.pt", weights_only=True)
    lm.load_state_dict(saved["lm"], strict=False)
    words.load_state_dict(saved["words"], strict=False)
    table, end = lm.eval().get_input_embeddings(), tokenizer.special_tokens["<|im_end|>"]
    tally: dict[str, list[bool]] = defaultdict(list)
    for i, what in enumerate(scenes):
        question = what.questions[0][0]
        before, behind = (torch.tensor([x]) for x in prompt_ids(tokenizer, question))
        rows = words(heads.eval()(*batch_of(have, np.array([i]))))
        embedded = torch.cat([table(before), rows, table(behind)], dim=1)
        ids = lm.generate(
            inputs_embeds=embedded,
            attention_mask=torch.ones(embedded.shape[:2], dtype=torch.long),
            max_new_tokens=40, do_sample=False, eos_token_id=end, pad_token_id=end,
        )[0].tolist()  # fmt: skip
        answer = tokenizer.decode([t for t in ids if t != end]).lower()
        if what.kind == "one":
            tally["name, one thing"].append(what.things[0].name.lower() in answer)
        elif what.kind == "two":
            places = [answer.find(thing.name.lower()) for thing in what.things]
            tally["both names"].append(min(places) >= 0)
            if min(places) >= 0:
                tally["sides, where both are named"].append(
                    what.things[0].name.lower() in answer.partition("left")[0]
                )
        elif what.kind == "count":
            tally["number"].append(NUMBERS[len(what.things)] in answer)
        elif what.kind == "shape":
            tally["colour + shape"].append(what.things[0].name.lower() in answer)
        else:
            tally["says that it can't tell"].append("can't tell" in answer)
    return {name: interval(sum(marks), len(marks)) for name, marks in sorted(tally.items())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--split", choices=["validation", "development"], default="validation")
    parser.add_argument("--scenes", type=int, default=500)
    parser.add_argument("--train-scenes", type=int, default=30_000, help="for --probe")
    parser.add_argument("--probe", action="store_true")
    parser.add_argument("--answers", action="store_true")
    options = parser.parse_args()

    have = features(options.split, options.scenes)
    scenes = [scene(i, options.split)[0] for i in range(options.scenes)]
    heads = Heads()
    heads.load_state_dict(torch.load(CACHE / "heads.pt", weights_only=True)["heads"])
    print(f"heads, {options.split}")
    for name, share in judge_heads(heads, have, scenes).items():
        print(f"  {name:42} {share}")
    chance = 100 / len(concepts()), 100 / (len(COLOURS) * len(SHAPES)), 100 / 5
    print("  plain chance: name {:.2f} %, colour + shape {:.1f} %, number {:.0f} %".format(*chance))
    if options.probe:
        n = options.train_scenes
        known = features("train", n), [scene(i)[0] for i in range(n)]
        print(f"linear probe, name, one thing               {linear_probe(known, (have, scenes))}")
    if options.answers:
        print(f"answers, {options.split}")
        for name, share in judge_answers(heads, have, scenes).items():
            print(f"  {name:42} {share}")


if __name__ == "__main__":
    main()
