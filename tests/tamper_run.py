"""Tamper with real receipts: `python tests/tamper_run.py --runs 100000`, or as `nox -s tamper`. Prints a table.

Exit codes: 0 every promise of the table is kept; 1 one is not.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).parents[1]
#: Of all tampers, how many are of each kind.
SHARES = {"bytes": 0.5, "signed": 0.2, "fields": 0.1, "side files": 0.1, "lanes": 0.1}
#: Rows of the table that count tampers of others once more.
NOT_TWICE = ("fields: results, by replay", "digest made again")
#: What has to be caught, in per cent, by kind.
PROMISES = {
    "bytes": 100.0,
    "signed": 100.0,
    "fields: evidence": 95.0,
    "fields: results, by replay": 100.0,
    "digest made again": 95.0,  # fields of evidence, side files and lanes together
}


def real_receipts(folder: Path) -> tuple[Path, Path, Path]:
    """Receipts of real runs: two small ones, the second with shorter continuations, and one over all shipped models."""
    import crossval.run as module

    made = []
    for name, n_greedy in (("first", 24), ("second", 12), ("whole", 24)):
        path = folder / name / "inference.json"
        if not path.exists():
            module.N_GREEDY = n_greedy
            print(f"running the comparison for {path} …", file=sys.stderr)
            models = tuple(sorted((ROOT / "fixtures" / "goldens").glob("*.gguf")))[:1]
            models += (ROOT / "fixtures" / "models" / "tiny-relu2.i2_s.gguf",)
            whole = name == "whole"
            options = module.Options(
                fixtures=ROOT / "fixtures",
                models=() if whole else models,
                only="" if whole else "oracle",
                receipt=path,
                work=folder / "work",
            )
            module.run(options, lambda _: None, lambda *_: None)
        made.append(path)
    return made[0], made[1], made[2]


class Tampering:
    """Every kind of tampering in turns, so that an interrupted run shows all of them.

    Args:
        paths: Of three real receipts.
        seed: Of what is changed.
        replays: How many of the changed results are computed again; None for all.
    """

    def __init__(self, paths: tuple[Path, Path, Path], seed: int, replays: int | None = None) -> None:
        import tamper as t

        from crossval.witness import EngineReplayer

        self.t, self.rng = t, random.Random(seed)
        self.source, self.foreign, self.whole = map(t.original, paths)
        self.places = t.leaves(self.whole.data)
        self.pool = [t.reach(self.whole.data, way) for _, way in self.places]
        self.rules, self.small_rules = t.Rules(self.whole), t.Rules(self.source)
        self.replayer, self.replays = Memo(EngineReplayer()), replays
        self.folder = tempfile.TemporaryDirectory()
        self.signed = Signed(Path(self.folder.name), paths[0])
        self.tried, self.caught, self.how = Counter[str](), Counter[str](), dict[str, Counter[str]]()

    def run(self, runs: int) -> None:
        """So many tampers, each kind with its share."""
        makers = {
            "bytes": self.bytes,
            "signed": lambda: [("signed", self.signed.tampered(self.rng))],
            "fields": self.field,
            "side files": self.side_file,
            "lanes": self.lane,
        }
        kinds = [kind for kind, share in SHARES.items() for _ in range(round(10 * share))]
        made = 0
        while made < runs:
            for kind in kinds:
                found = makers[kind]()
                made += bool(found)
                for name, by in found:
                    self.enter(name, by)

    def enter(self, kind: str, by: str) -> None:
        """Count one."""
        self.tried[kind] += 1
        self.caught[kind] += bool(by)
        self.how.setdefault(kind, Counter())[by or "not caught"] += 1

    def bytes(self) -> list[tuple[str, str]]:
        """A receipt's own bytes."""
        by = self.t.caught_in_bytes(self.t.flipped(self.source.content, self.rng), self.source)
        if by == "the same":
            self.tried["bytes that change no value"] += 1
            return []
        return [("bytes", by)]

    def field(self) -> list[tuple[str, str]]:
        """One field, with the digest made again; a result is replayed, too."""
        path, way = self.rng.choice(self.places)
        data = self.t.changed(self.whole, way, path, self.pool, self.rng)
        if data is None:
            return []
        by = self.t.caught_in_field(data, self.whole, self.rules)
        words = "words" if self.t.WORDS.search(path) else "evidence"
        kind = "machine" if self.t.MACHINE.search(path) else words
        if not by and kind == "evidence":
            self.how.setdefault("missed", Counter())[path.translate(dict.fromkeys(b"0123456789"))] += 1
        found = [(f"fields: {kind}", by)]
        replayed = self.tried["fields: results, by replay"]
        if self.t.RESULTS.search(path) and (self.replays is None or replayed < self.replays):
            found.append(("fields: results, by replay", self.replayer.caught(data, by)))
        return found

    def side_file(self) -> list[tuple[str, str]]:
        """Another table, or one with other rows."""
        made = self.t.swapped(self.source, self.foreign, self.rng)
        return (
            []
            if made is None
            else [(f"side files: {made[2]}", self.t.caught_in_table(made[0], made[1], self.small_rules))]
        )

    def lane(self) -> list[tuple[str, str]]:
        """A lane, or its rungs, from elsewhere."""
        made = self.t.spliced(self.source, self.foreign, self.rng)
        return (
            []
            if made is None
            else [(f"lanes: {made[1]}", self.t.caught_in_field(made[0], self.source, self.small_rules))]
        )


class Memo:
    """Replays, of which only the first of each question costs anything."""

    def __init__(self, runner) -> None:
        self.runner = runner
        self.known = {}

    def caught(self, data, by: str) -> str:
        """Whether a replay of all cases notices; a receipt that is no receipt cannot be replayed, and is caught."""
        from receipts.errors import ReceiptError
        from receipts.read import decode
        from receipts.replay import replay

        try:
            receipt = decode(data)
        except ReceiptError:
            return by
        rows = replay(receipt, self, "", k=None)
        bad = next((row for row in rows if row.outcome != "pass"), None)
        return bad.name if bad else ""

    name = "memo"

    def _ask(self, key, question):
        from receipts.errors import ReceiptError

        if key not in self.known:
            try:
                self.known[key] = question()
            except ReceiptError as error:
                self.known[key] = error
        if isinstance(self.known[key], Exception):
            raise self.known[key]
        return self.known[key]

    def model(self, record):
        found = self._ask(("model", record.sha256, record.bytes), lambda: self.runner.model(record))
        return replace_name(found, record)

    def tokenizer(self, record):
        return self._ask(("tokenizer", record.name), lambda: self.runner.tokenizer(record))

    def case(self, model, case):
        from dataclasses import replace

        key = ("case", model.sha256, tuple(sorted(case.numerics.items())), case.prompt_ids, len(case.generated_ids))
        return replace(self._ask(key, lambda: self.runner.case(model, case)), name=case.name, model=case.model)


def replace_name(found, record):
    """The model as the runner would return it for this record: the name is the record's own."""
    from dataclasses import replace

    return replace(found, name=record.name)


class Signed:
    """A signed receipt in a folder, damaged in one of its files and mended again."""

    def __init__(self, folder: Path, source: Path) -> None:
        from receipts import read
        from receipts.keys import generate
        from receipts.sign import sign
        from receipts.trust import trust_of

        shutil.copytree(source.parent, folder / "ci")
        self.path = folder / "ci" / source.name
        public, _ = generate(folder / "key")
        sign(self.path, folder / "key")
        self.trust = trust_of((public,))
        self.receipt = read(self.path)
        self.files = [self.path, Path(f"{self.path}.dsse")]
        self.files += [self.path.parent / side.file for side in self.receipt.side_files]
        self.contents = {file: file.read_bytes() for file in self.files}

    def tampered(self, rng: random.Random) -> str:
        import tamper as t

        from receipts.errors import ReceiptError
        from receipts.read import read, read_table
        from receipts.sign import check_signature, read_envelope

        file = rng.choice(self.files)
        before = self.contents[file]
        after = before
        while after == before:
            after = t.flipped(before, rng)
        file.write_bytes(after)
        try:
            receipt = read(self.path)
            for side in receipt.side_files:
                if self.path.parent / side.file == file:
                    read_table(self.path, side)
            good = {verdict.name: verdict.held for verdict in check_signature(self.path, receipt, self.trust)}
            if not (good.get("signature.statement") and good.get("signature.threshold")):
                return "signature"
            if file.suffix == ".dsse":  # its own white space signs nothing and says nothing
                file.write_bytes(before)
                whole = read_envelope(file)
                file.write_bytes(after)
                return "signature" if read_envelope(file) != whole else "the same envelope"
        except ReceiptError as error:
            return f"reading ({type(error).__name__})"
        else:
            return ""
        finally:
            file.write_bytes(before)


def table(tried: Counter[str], caught: Counter[str]) -> tuple[str, bool]:
    """The table, and whether every promise is kept."""
    lines = [f"{'kind':<44} {'tampers':>9} {'caught':>9} {'share':>9}  promise"]
    kept = True
    again = [k for k in tried if k == "fields: evidence" or k.startswith(("side files", "lanes"))]
    tried, caught = (n | Counter({"digest made again": sum(n[k] for k in again)}) for n in (tried, caught))
    for kind in sorted(tried):
        if kind == "bytes that change no value":
            lines.append(f"{kind:<44} {tried[kind]:>9} {'–':>9} {'–':>9}  white space, or 1.0 for 1")
            continue
        share = 100 * caught[kind] / tried[kind]
        promise = PROMISES.get(kind)
        ok = promise is None or share >= promise
        kept &= ok
        said = "" if promise is None else f"≥ {promise:g} % {'kept' if ok else 'NOT KEPT'}"
        lines.append(f"{kind:<44} {tried[kind]:>9} {caught[kind]:>9} {share:>8.2f}%  {said}")
    lines.append(f"{'all':<44} {sum(n for k, n in tried.items() if k not in NOT_TWICE):>9}")
    return "\n".join(lines), kept


def main() -> None:
    """Run, print, and leave with the code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--replays", type=int, help="compute at most so many of the changed results again")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "tamper", help="of the three real receipts")
    parser.add_argument("--receipts", type=Path, nargs=3, help="three receipts of one's own instead")
    parser.add_argument("--missed", action="store_true", help="list the fields of which changes were not caught")
    arguments = parser.parse_args()
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    paths = tuple(arguments.receipts or real_receipts(arguments.folder))
    begin = time.monotonic()
    tampering = Tampering(paths, arguments.seed, arguments.replays)
    with suppress(KeyboardInterrupt):  # what was tried by then is shown
        tampering.run(arguments.runs)
    text, kept = table(tampering.tried, tampering.caught)
    print(text)
    print(f"{time.monotonic() - begin:.0f} s")
    if arguments.missed:
        for kind, checks in sorted(tampering.how.items()):
            print(kind, *(f"\n  {n:>7} {name}" for name, n in checks.most_common(30)))
    sys.exit(0 if kept else 1)


if __name__ == "__main__":
    main()
