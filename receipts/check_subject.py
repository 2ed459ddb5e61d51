"""The run, the machine and the models by themselves: could there be such a commit, such a CPU, such a model?"""

from __future__ import annotations

import re
from collections.abc import Iterator

from receipts.rule import Finding, View, rule

_VERSION = re.compile(r"v?(\d+!)?\d+(\.\d+)*[-_.]?[0-9A-Za-z.+_-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_RUN_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_FLAG = re.compile(r"[a-z0-9][a-z0-9_.\-]*")
#: Features that a CPU has only together with others.
_IMPLIES = {
    "avx": ("sse4_2",),
    "avx2": ("avx",),
    "fma": ("avx",),
    "f16c": ("avx",),
    "avx512f": ("avx2",),
    "avx512bw": ("avx512f",),
    "avx512_vnni": ("avx512f",),
    "sse4_2": ("sse4_1",),
    "sse4_1": ("ssse3",),
    "sse2": ("sse",),
}
#: Activations of the gated feed-forward that any file declares.
_ACTIVATIONS = ("relu2", "silu", "gelu", "relu")
#: Architecture → what its contract says: activation unless declared, and whether there are sub-norms.
_CONTRACTS = {
    "bitnet-b1.58": ("relu2", True),
    "bitnet-25": ("relu2", True),
    "bitnet": ("silu", True),
    "llama": ("silu", False),
}
#: The smallest memory in which a Python with numpy starts.
_LEAST_MEMORY = 64 * 2**20


@rule("identity.form", "The run has a UUID, a command, a version, and a commit by its hash, or none.")
def identity_form(view: View) -> Iterator[Finding]:
    """Whether there were changes is known exactly where there is a commit."""
    identity = view.receipt.identity
    if not _RUN_ID.fullmatch(identity.run_id):
        yield "identity.run_id", f"{identity.run_id!r:.60} is no UUID"
    if not identity.command.strip():
        yield "identity.command", "is empty"
    if not _VERSION.fullmatch(identity.package_version):
        yield "identity.package_version", f"{identity.package_version!r:.60} is no version"
    if identity.git_commit and not _COMMIT.fullmatch(identity.git_commit):
        yield "identity.git_commit", f"{identity.git_commit!r:.60} is no commit"
    if (identity.git_dirty is None) != (not identity.git_commit):
        yield "identity.git_dirty", f"{identity.git_dirty} with the commit {identity.git_commit[:12]!r}"


@rule("environment.machine", "The machine has cores, memory for its models, and features that occur together.")
def environment_machine(view: View) -> Iterator[Finding]:
    """Flags are sorted and listed once, as the run writes them."""
    machine = view.receipt.environment
    if machine.cores == 0:
        yield "environment.cores", "is zero"
    if machine.memory_bytes < max([_LEAST_MEMORY, *(model.bytes for model in view.receipt.models)]):
        yield "environment.memory_bytes", f"{machine.memory_bytes} bytes cannot hold what ran"
    flags = machine.cpu_flags
    if list(flags) != sorted(set(flags)):
        yield "environment.cpu_flags", "are not sorted, or one is listed twice"
    odd = [flag for flag in flags if not _FLAG.fullmatch(flag)]
    if odd:
        yield "environment.cpu_flags", f"{odd[0]!r:.60} is no flag"
    if "sse2" in flags and machine.machine not in ("x86_64", "AMD64", "i686"):
        yield "environment.machine", f"{machine.machine!r:.60} has no sse2"
    if "asimd" in flags and machine.machine not in ("aarch64", "arm64"):
        yield "environment.machine", f"{machine.machine!r:.60} has no asimd"
    if "sse2" in flags and "lm" in flags:  # as Linux lists them, which is all of them
        for flag, needed in _IMPLIES.items():
            for other in needed:
                if flag in flags and other not in flags:
                    yield "environment.cpu_flags", f"{flag} without {other}"


@rule("environment.versions", "Versions look like versions, and variables are this project's.")
def environment_versions(view: View) -> Iterator[Finding]:
    """Of Python and of packages."""
    machine = view.receipt.environment
    if not _VERSION.fullmatch(machine.python):
        yield "environment.python", f"{machine.python!r:.60} is no version"
    if not re.search(r"[A-Za-z]", machine.os):
        yield "environment.os", f"{machine.os!r:.60} is no system"
    for name, version in machine.packages.items():
        if not _VERSION.fullmatch(version):
            yield f"environment.packages.{name}", f"{version!r:.60} is no version"
    for name in machine.variables:
        if not name.startswith("BITNET_"):
            yield f"environment.variables.{name}", "is none of the project's variables"


@rule("models.files", "Models are files of their own, of a known activation, with the tensors that their kernels read.")
def models_files(view: View) -> Iterator[Finding]:
    """Seven projections a layer in the types that the ledger names."""
    files: dict[str, str] = {}
    for i, model in enumerate(view.receipt.models):
        path = f"models[{i}]"
        for mark in (model.file, model.sha256):
            if files.setdefault(mark, model.name) != model.name:
                yield f"{path}.file", f"is the file of {files[mark]!r} too"
        if model.activation not in _ACTIVATIONS:
            yield f"{path}.activation", f"{model.activation!r:.60} is none of {', '.join(_ACTIVATIONS)}"
        used = {
            entry.weight_type.lower()
            for part in view.receipt.ledger
            for entry in part.entries
            if part.model == model.name and entry.role == "projection"
        }
        tensors = sum(n for name, n in model.tensor_types.items() if name.lower() in used)
        if used and tensors < 7 * model.hyper_parameters.n_layer:
            yield f"{path}.tensor_types", f"{tensors} tensors in the types that projections were read in"


@rule("models.contract", "A model follows the contract of its architecture, and has the tensors of it and no others.")
def models_contract(view: View) -> Iterator[Finding]:
    """The loader refuses what no operation uses. A projection may have a scale, or a norm, of its own."""
    for i, model in enumerate(view.receipt.models):
        shape, path = model.hyper_parameters, f"models[{i}]"
        if model.arch not in _CONTRACTS:
            yield f"{path}.arch", f"{model.arch!r:.60} is none of {', '.join(_CONTRACTS)}"
            continue
        activation, sub_norms = _CONTRACTS[model.arch]
        if shape.sub_norms != sub_norms:
            yield f"{path}.hyper_parameters.sub_norms", f"{model.arch} has {'some' if sub_norms else 'none'}"
        if model.activation_source == "architecture" and model.activation != activation:
            yield f"{path}.activation", f"{model.activation}, but that of {model.arch} is {activation}"
        tensors, needed = sum(model.tensor_types.values()), shape.tensors
        if not needed <= tensors <= needed + 7 * shape.n_layer:
            yield f"{path}.tensor_types", f"{tensors} tensors, but the architecture has {needed}"


@rule("models.values", "Hyper-parameters are such as a model can have, and its context holds every case.")
def models_values(view: View) -> Iterator[Finding]:
    """An even head, a base of rotations above 1, an epsilon below 0.1."""
    longest: dict[str, int] = {}
    for case in view.receipt.cases:
        length = len(case.prompt_ids) + max(len(case.generated_ids) - 1, 0)
        longest[case.model] = max(length, longest.get(case.model, 0))
    for i, model in enumerate(view.receipt.models):
        shape, path = model.hyper_parameters, f"models[{i}].hyper_parameters"
        if shape.head_dim % 2:
            yield f"{path}.head_dim", f"{shape.head_dim} is odd, so that its rotations do not pair up"
        if shape.rope_theta <= 1:
            yield f"{path}.rope_theta", f"{shape.rope_theta:g} is no base of rotations"
        if shape.rms_eps >= 0.1:
            yield f"{path}.rms_eps", f"{shape.rms_eps:g} is no small number"
        if longest.get(model.name, 0) > shape.n_ctx:
            yield f"{path}.n_ctx", f"{shape.n_ctx}, but a case has {longest[model.name]} ids"


@rule("tokenizers.once", "A model has one tokenizer, of a known kind.")
def tokenizers_once(view: View) -> Iterator[Finding]:
    """Byte pairs or SentencePiece."""
    seen: set[str] = set()
    for i, tokenizer in enumerate(view.receipt.tokenizers):
        if tokenizer.model in seen:
            yield f"tokenizers[{i}].model", f"a second tokenizer of {tokenizer.model!r}"
        seen.add(tokenizer.model)
        if tokenizer.kind not in ("bpe", "spm"):
            yield f"tokenizers[{i}].kind", f"{tokenizer.kind!r:.60} is neither bpe nor spm"
