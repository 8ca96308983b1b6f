"""Turns files of text into token streams, and indexes streams that were published.

    python -m launch.tokenize --source=hf://datasets/HuggingFaceFW/fineweb-edu/sample/100BT \\
        --tokenizer=models/olmo2_7b/tokenizer.json --target=data/fineweb-edu \\
        --max_tokens=10100000000
    python -m launch.tokenize --source='texts/*.jsonl.gz' --field=content \\
        --tokenizer=models/olmo2_7b/tokenizer.json --target=data/texts
    python -m launch.tokenize --published=downloads/olmo-mix \\
        --tokenizer=models/olmo2_7b/tokenizer.json --target=data/olmo-mix

Killed at any moment, the same command goes on with what is missing; `docs/data.md` has the rest.
"""

import contextlib
import pathlib
import signal

from absl import flags

from launch import command
from ratjax.data import MissingDataError
from ratjax.data.corpus.documents import documents
from ratjax.data.corpus.files import expand, plan_shards
from ratjax.data.corpus.job import Job, run
from ratjax.data.corpus.pool import processors
from ratjax.data.corpus.progress import Progress
from ratjax.data.corpus.published import index_published
from ratjax.data.corpus.shard import Recipe
from ratjax.data.encoding import find_eos, load_tokenizer
from ratjax.errors import InputError

ONLY_TEXT = ("field", "separator", "held_out", "max_tokens", "workers", "shard_megabytes")


def define() -> None:
    """Defines this command's flags."""
    values = command.FLAGS
    if "source" in values:
        return
    flags.DEFINE_list(
        "source",
        [],
        "Files, folders and patterns, separated by commas: parquet, JSON lines (.jsonl, .json), "
        "text (.txt), the latter two also as .gz or .zst. Here, or hf://datasets/owner/name/path.",
        flag_values=values,
    )
    flags.DEFINE_string("target", None, "Folder of the stream.", values)
    flags.DEFINE_alias("input", "source", flag_values=values)
    flags.DEFINE_alias("output", "target", flag_values=values)
    flags.DEFINE_list(
        "published",
        [],
        "In place of --source: files of tokens (.npy with or without a header, .bin), or folders "
        "of them. They stay where they are; only an index is written, to --target or beside them.",
        flag_values=values,
    )
    flags.DEFINE_string("tokenizer", None, "A tokenizer.json, or the folder that has it.", values)
    flags.DEFINE_string("eos", None, "The token after each document. Unset: a usual name.", values)
    flags.DEFINE_integer("eos_id", None, "Its number, in place of --eos.", flag_values=values)
    flags.DEFINE_string("field", "text", "Which field of a record holds its text.", values)
    flags.DEFINE_string(
        "separator", None, "What parts the documents of a text file. Unset: it is one.", values
    )
    flags.DEFINE_float(
        "held_out",
        0.001,
        "Share of the documents that go into <target>/held_out.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "max_tokens", None, "Ends with the document that reaches so many.", flag_values=values
    )
    flags.DEFINE_integer(
        "workers",
        None,
        "Processes. 0: this one alone. Unset: one a processor.",
        0,
        flag_values=values,
    )
    flags.DEFINE_float(
        "shard_megabytes",
        256.0,
        "Input that makes one file of the output.",
        1e-6,
        flag_values=values,
    )
    flags.DEFINE_enum(
        "dtype",
        None,
        ("uint32", "uint16"),
        "Of published files without a header. Unset: by the size of the vocabulary.",
        flag_values=values,
    )
    command.define_dry_run()


def main() -> int:
    values = command.FLAGS
    if bool(values.source) == bool(values.published):
        raise InputError(
            f"source={values.source}, published={values.published}: give either --source or "
            "--published"
        )
    if not values.tokenizer:
        raise InputError("tokenizer=None: give --tokenizer=<tokenizer.json>")
    before = signal.signal(signal.SIGTERM, _interrupt)  # a polite kill ends as an interrupt does
    try:
        return _index() if values.published else _tokenize()
    except MissingDataError as error:
        if not values.dry_run:
            raise
        command.warn(error)
        command.conclude({"files": None})
        return 0
    except OSError as error:
        raise InputError(
            f"{error.filename or values.target}: {error.strerror or error}; what is finished is "
            "kept"
        ) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(*_) -> None:
    raise KeyboardInterrupt


def _tokenize() -> int:
    values = command.FLAGS
    if not values.target:
        raise InputError("target=None: give --target=<folder>")
    if values.dtype:
        raise InputError(f"dtype={values.dtype!r}: only used with --published; streams are uint32")
    tokenizer = load_tokenizer(values.tokenizer)
    eos = find_eos(tokenizer, values.eos, values.eos_id)
    recipe = Recipe(eos, values.field, values.separator, values.held_out)
    files = expand(values.source)
    shards = plan_shards(files, int(values.shard_megabytes * 1e6))
    job = Job(
        pathlib.Path(values.target),
        shards,
        pathlib.Path(values.tokenizer),
        recipe,
        values.max_tokens,
    )
    done, size = job.state(), sum(file.size for file in files)
    print(
        f"{len(files)} files, {size / 1e9:.3f} GB, {len(shards)} shards of which {len(done)} are "
        f"finished; each document is followed by {tokenizer.id_to_token(eos)!r} ({eos})",
        flush=True,
    )
    if values.dry_run:
        next(documents(shards[0][0], recipe.field, recipe.separator), None)
        command.conclude(
            {"files": len(files), "bytes": size, "shards": len(shards), "finished": len(done)}
        )
        return 0
    workers = processors() if values.workers is None else values.workers
    with contextlib.closing(Progress()) as progress:
        counts = run(job, min(workers, len(shards)), progress)
    print(
        f"{values.target}: {counts.tokens:,} tokens of {counts.documents:,} documents; held_out: "
        f"{counts.held_out_tokens:,} of {counts.held_out_documents:,}"
    )
    if recipe.held_out and not counts.held_out_tokens:
        command.warn(f"held_out={recipe.held_out}: of so few documents none is held out")
    return 0


def _index() -> int:
    values = command.FLAGS
    for name in ONLY_TEXT:
        if values[name].present:
            raise InputError(f"{name}={values[name].value!r}: not used with --published")
    tokenizer = load_tokenizer(values.tokenizer)
    eos = find_eos(tokenizer, values.eos, values.eos_id)
    size = tokenizer.get_vocab_size()
    index = index_published(
        values.published, values.target, eos, size, values.dtype, write=not values.dry_run
    )
    tokens = sum(file["tokens"] for file in index["files"])
    print(f"{len(index['files'])} files of {index['dtype']}, {tokens:,} tokens")
    if values.dry_run:
        command.conclude({"files": len(index["files"]), "tokens": tokens})
    return 0


if __name__ == "__main__":
    define()
    command.run(main, interrupted="interrupted; the same command goes on with what is missing")
