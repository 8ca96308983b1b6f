"""The first paragraph says what the data says."""

import re
import statistics

from ratjax.needle.report import labels
from ratjax.needle.report.content import collect
from ratjax.needle.report.summary import caveats, findings, resolution
from tests.needle_report import synthetic


def test_every_average_difference_is_stated(content):
    (text,) = findings(content)
    (group,) = content.groups
    ((comparison,),) = content.comparisons
    for setting, difference in comparison.averages.items():
        if not setting.is_dense:
            shown = f"{labels.signed(difference.points)} ({setting.budget})"
            assert shown in text.partition(f"{labels.method(setting.method)} ")[2]
    for backbone in group.backbones:
        dense = labels.number(group.average(backbone, group.dense_setting).mean)
        assert f"{backbone} scores {dense}" in text
    assert text.startswith("Reading everything (dense)")


def test_counts_of_significant_cells_are_counted(content):
    (text,) = findings(content)
    ((comparison,),) = content.comparisons
    assert len(comparison.tested) == 72
    marked = [d for d in comparison.tested if d.significant]
    assert 0 < len(marked) < 72
    assert f"Of 72 pairs of cells (setting and task) {len(marked)} differ significantly" in text


def test_kept_counts_settings_net_of_dense(content):
    (text,) = findings(content)
    ((comparison,),) = content.comparisons
    net = [d.net_of_dense.mean for d in comparison.averages.values() if d.net_of_dense]
    ahead = sum(value > 0 for value in net)
    stated = {"all nine": 9, "eight of nine": 8, "seven of nine": 7, "six of nine": 6}
    assert stated[re.search(r"in (all nine|\w+ of nine) sparse", text).group(1)] == ahead


def test_resolution_states_the_edge_and_its_formula(content):
    ((comparison,),) = content.comparisons
    text = resolution(comparison)
    # Twenty prompts, eight tests: nine discordant prompts, 45 points.
    assert "no difference in fully right answers below 45.0 points" in text
    assert f"2^(1{labels.MINUS}m)" in text and "0.05/8" in text and "100 m / 20" in text


def test_resolution_with_several_seeds_states_the_minimum_detectable_effect(tmp_path):
    chosen = synthetic.settings(methods=("quest",), budgets=("1/4",))[1:]
    folders = [
        synthetic.write_run(
            tmp_path / str(seed),
            tasks=synthetic.TASKS[:2],
            chosen=chosen,
            train_seed=seed,
            samples=12,
            metrics=False,
        )
        for seed in range(3)
    ]
    content = collect(folders)
    ((comparison,),) = content.comparisons
    sizes = [d.over_seeds.detectable(2) for d in comparison.tested]
    text = resolution(comparison)
    assert f"With three seeds a difference of {labels.number(statistics.median(sizes))} " in text
    assert f"1{labels.MINUS}0.05/4 and 0.8; Bloom 1995" in text
    (found,) = findings(content)
    assert "seeds and prompts as random effects" in found
    assert "speak about other trainings too" in " ".join(caveats(content))


def test_caveats_of_a_tiny_pair(content):
    text = " ".join(caveats(content))
    assert "A pair trained for the tests on made-up text." in text
    assert "The models are tiny (at most 0.47 million parameters)" in text
    assert "belong to other models (7B parameters" in text
    assert "one training seed" in text


def test_a_large_model_that_repeats_the_paper_has_neither_caveat(tmp_path):
    meta = {"parameters": 7_000_000_000, "paper_checkpoints": "olmo2_7b", "description": None}
    chosen = synthetic.settings(4096, methods=("quest",), budgets=("1/4",), block_size=64)
    folder = synthetic.write_run(
        tmp_path / "r", chosen=chosen, context_length=4096, samples=4, metrics=False, meta=meta
    )
    text = " ".join(caveats(collect([folder])))
    assert "tiny" not in text and "other models" not in text


def test_one_backbone_is_said_to_be_alone(tmp_path):
    folder = synthetic.write_run(tmp_path / "r", backbones=("memory",), samples=4, metrics=False)
    (text,) = findings(collect([folder]))
    assert "Only memory was evaluated" in text and "significant" not in text


def test_without_predictions_nothing_is_called_tested(tmp_path):
    folder = synthetic.write_run(tmp_path / "r", samples=4, predictions=False, metrics=False)
    (text,) = findings(collect([folder]))
    assert "no difference could be tested" in text


def test_a_group_has_a_paragraph(tmp_path):
    folders = [
        synthetic.write_run(
            tmp_path / str(length),
            run=f"r{length}",
            context_length=length,
            samples=4,
            metrics=False,
            predictions=False,
        )
        for length in (256, 1024)
    ]
    texts = findings(collect(folders))
    assert [text.split(":")[0] for text in texts] == [
        "256 tokens",
        f"{labels.count(1024)} tokens",
    ]


def test_several_comparisons_have_a_paragraph_each(tmp_path):
    chosen = synthetic.settings(methods=("quest",), budgets=("1/4",))
    names = ("attention", "memory", "control")
    folder = synthetic.write_run(
        tmp_path / "r",
        backbones=names,
        tasks=synthetic.TASKS[:2],
        chosen=chosen,
        samples=4,
        metrics=False,
    )
    dense, *pairs = findings(collect([folder]))
    assert all(f"{name} scores" in dense for name in names)
    said = ("memory minus attention", "control minus attention", "memory minus control")
    assert [pair in text for pair, text in zip(said, pairs, strict=True)] == [True] * 3


def test_numbers_read_well():
    assert labels.number(-3.04) == "\N{MINUS SIGN}3.0"
    assert labels.number(-0.04) == "0.0"
    assert labels.signed(0.04) == "0.0"
    assert labels.signed(2.0) == "+2.0"
    assert labels.number(None) == labels.DASH
    assert labels.joined(["a"]) == "a"
    assert labels.joined(["a", "b", "c"]) == "a, b and c"
    assert labels.probability(0.0004) == "<0.001"
