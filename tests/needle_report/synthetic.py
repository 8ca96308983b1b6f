"""Run folders with made-up but plausible results, to build reports from."""

import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

TASKS = (
    "niah_single_1",
    "niah_single_2",
    "niah_single_3",
    "niah_multikey_1",
    "niah_multikey_2",
    "niah_multikey_3",
    "niah_multivalue",
    "niah_multiquery",
)
BUDGETS = ("1/4", "1/8", "1/16")
METHODS = ("quest", "moba", "snapkv")
# Chance that one answer is right, before the budget takes its share: attention, memory.
_STRENGTH = {
    "dense": (0.97, 0.98),
    "quest": (0.9, 0.94),
    "moba": (0.85, 0.96),
    "snapkv": (0.6, 0.9),
}
_FADE = {"attention": 0.78, "memory": 0.93}
_NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."


def settings(
    context_length: int = 256,
    methods: Sequence[str] = METHODS,
    budgets: Sequence[str] = BUDGETS,
    selectors: Sequence[tuple[str, int | None]] = (("original", None),),
    block_size: int = 16,
) -> list[dict[str, Any]]:
    """Dense, then every method x budget x (selector, selector seed)."""
    rows = [
        {
            "method": "dense",
            "block_size": None,
            "k": None,
            "budget": "1",
            "selector": "original",
            "selector_seed": None,
        }
    ]
    for method in methods:
        for budget in budgets:
            tokens = context_length // int(budget.split("/")[1])
            block = None if method == "snapkv" else block_size
            for selector, seed in selectors:
                rows.append(
                    {
                        "method": method,
                        "block_size": block,
                        "k": tokens if block is None else max(1, tokens // block),
                        "budget": budget,
                        "selector": selector,
                        "selector_seed": seed,
                    }
                )
    return rows


def write_run(
    folder: Path,
    run: str = "synthetic",
    backbones: Sequence[str] = ("attention", "memory"),
    tasks: Sequence[str] = TASKS,
    samples: int = 20,
    context_length: int = 256,
    train_seed: int | None = 0,
    chosen: Iterable[dict[str, Any]] | None = None,
    predictions: bool = True,
    metrics: bool = True,
    costs: bool = True,
    meta: dict[str, Any] | None = None,
) -> Path:
    """Writes results.json and, if asked, predictions and prompts, timing.json, metrics.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    results, lines, times = [], [], []
    prompts: dict[str, dict[str, Any]] = {}
    for backbone in backbones:
        for setting in list(chosen) if chosen is not None else settings(context_length):
            named = {
                "run": run,
                "backbone": backbone,
                "context_length": context_length,
                "train_seed": train_seed,
                **setting,
            }
            times.append({**named, **_times(named)})
            for task in tasks:
                answered = [_answer(named, task, index) for index in range(samples)]
                for row in answered:
                    prompt = {name: row.pop(name) for name in ("prompt", "input", "outputs")}
                    prompts[prompt["prompt"]] = prompt
                    line = {"setting": named, "task": task, "prompt": prompt["prompt"], **row}
                    lines.append(line)
                results.append({**named, "task": task, **_cell(named, answered, costs)})
    document = {"meta": {**_META, **(meta or {})}, "results": results}
    (folder / "results.json").write_text(json.dumps(document))
    if costs:
        (folder / "timing.json").write_text(json.dumps({"meta": {}, "timing": times}))
    if predictions:
        write_lines(folder / "predictions.jsonl", lines)
        write_lines(folder / "prompts.jsonl", prompts.values())
    if metrics:
        _write_metrics(folder, backbones)
    return folder


def write_lines(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_paper_run(folder: Path, samples: int = 10) -> Path:
    """OLMo2's pair at 4096 tokens: the paper's settings, random selectors with five seeds, and
    selections steered and swapped at one budget; hit rates of the methods' own selectors."""
    chosen = settings(4096, block_size=64)
    quarter = [row for row in chosen if row["budget"] == "1/4"]
    random_rows = [
        {**row, "selector": "random", "selector_seed": s} for row in quarter for s in range(5)
    ]
    changes = ("_golden_in", "_golden_out", "_select_with_raw", "_attend_to_raw")
    changed = [
        {**row, "selector": f"original{change}"}
        for row in quarter
        if row["method"] == "quest"
        for change in changes
    ]
    write_run(
        folder,
        run="table4",
        samples=samples,
        context_length=4096,
        chosen=[*chosen, *random_rows, *changed],
        metrics=False,
        meta={"paper_checkpoints": "olmo2_7b", "parameters": 7_300_000_000},
    )
    write_hits(folder)
    return folder


def write_hits(folder: Path) -> None:
    """hits.json with made-up rates for the run's own selectors under Quest and SnapKV."""
    rows = []
    results = json.loads((folder / "results.json").read_text())["results"]
    for result in results:
        if result["method"] not in ("quest", "snapkv") or result["selector"] != "original":
            continue
        numerator, _, denominator = result["budget"].partition("/")
        share = int(numerator) / int(denominator or 1)
        best = 1.0 if result["backbone"] == "memory" else 0.97
        top = [[best - (1 - share) * rank / 80, 0, rank] for rank in range(50)]
        worth = {"prompts": result["samples"] - 3, "score_strict": 90.0}
        rows.append(
            {
                **result,
                "top": top,
                "rates": [[rate for rate, *_ in top]],
                "given_hit": worth,
                "given_miss": {"prompts": 3, "score_strict": 40.0},
            }
        )
    (folder / "hits.json").write_text(json.dumps({"hits": rows}))


_META = {
    "description": "A pair trained for the tests on made-up text",
    "parameters": {"attention": 450_000, "memory": 466_000},
    "device": "cpu, 2 cores",
    "commit": "0123abc",
    "versions": {"python": "3.11.7", "jax": "0.10.2", "flax": "0.12.8"},
    "config": {"needle": {"samples": 20, "context_length": 256}, "train": {"steps": 1200}},
}


def _answer(named: dict[str, Any], task: str, index: int) -> dict[str, Any]:
    prompts = random.Random(f"{task}/{index}")
    several = task in ("niah_multivalue", "niah_multiquery")
    gold = [str(prompts.randrange(10**6, 10**7)) for _ in range(4 if several else 1)]
    noise = [_NOISE] * 6
    key = prompts.choice(["brave-otter", "quiet-lamp", "amber-field"])
    for value in gold:
        needle = f"One of the special magic numbers for {key} is: {value}."
        noise.insert(prompts.randrange(len(noise) + 1), needle)
    prompt = "\n".join(
        [
            "A special magic number is hidden within the following text.",
            *noise,
            f"What is the special magic number for {key} mentioned in the provided text?",
        ]
    )
    fate = random.Random(f"{task}/{index}/{named}")
    chance = _chance(named, task)
    said = [v if fate.random() < chance else str(fate.randrange(10**6, 10**7)) for v in gold]
    right = len(set(said) & set(gold)) / len(gold)
    return {
        "index": index,
        "prompt": f"{task}/{index}",
        "input": prompt,
        "prediction": ",".join(said),
        "outputs": gold,
        "strict": right,
        "ruler": right,
    }


def _chance(named: dict[str, Any], task: str) -> float:
    numerator, _, denominator = named["budget"].partition("/")
    halvings = max(0, (int(denominator or 1) // int(numerator)).bit_length() - 3)
    side = min(
        1, ("attention", "memory").index(named["backbone"]) if named["backbone"] in _FADE else 0
    )
    chance = _STRENGTH.get(named["method"], (0.8, 0.8))[side]
    chance *= _FADE.get(named["backbone"], 0.85) ** halvings
    chance *= 1 - 0.05 * TASKS.index(task) if named["method"] != "dense" else 1
    return chance * (0.6 if named["selector"] != "original" else 1)


def _times(named: dict[str, Any]) -> dict[str, float]:
    numerator, _, denominator = named["budget"].partition("/")
    share = int(numerator) / int(denominator or 1)
    return {
        "prefill_seconds": 0.021,
        "decode_seconds": 0.013 + 0.02 * share,
        "tokens_per_s": 1000 / (0.5 + share),
    }


def _cell(named: dict[str, Any], answered: Sequence[dict[str, Any]], costs: bool) -> dict[str, Any]:
    scores = [row["strict"] for row in answered]
    mean = sum(scores) / len(scores)
    half = 1.96 * (max(mean * (1 - mean), 0.01) / len(scores)) ** 0.5
    numerator, _, denominator = named["budget"].partition("/")
    share = int(numerator) / int(denominator or 1)
    cell = {
        "score_strict": round(100 * mean, 2),
        "score_ruler": round(100 * mean, 2),
        "samples": len(scores),
        "ci95": [round(100 * max(0, mean - half), 2), round(100 * min(1, mean + half), 2)],
        "kv_read_fraction": min(1.0, share * 1.03),
    }
    if costs:
        cell |= {
            "kv_read_fraction_prefill": 1.0,
            "kv_read_fraction_decode": min(1.0, share * 1.03),
            "kv_bytes_per_token": 2**20 * share,
            "prefill_flops": 3e12,
            "cache_bytes": 2 * 2**20 * (share if named["method"] == "snapkv" else 1),
        }
    return cell


def _write_metrics(folder: Path, backbones: Sequence[str]) -> None:
    for backbone in backbones:
        for phase, steps in (("pretrain", 700), ("finetune", 300)):
            noise = random.Random(f"{backbone}/{phase}")
            path = folder / "train" / backbone / phase / "metrics.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            rate = 0.004 if backbone == "attention" else 0.005
            rows = (
                {"step": s, "loss": 0.4 + 5.2 * 2.718 ** (-rate * s) + noise.gauss(0, 0.05)}
                for s in range(1, steps + 1)
            )
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
