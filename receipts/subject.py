"""Who ran, where, on what: the run, the machine, the models and their tokenizers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from receipts.codec import Amount, Count, Name, Record, Sha256, Time


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity(Record):
    """The run.

    Attributes:
        run_id: Unique.
        command: As it was typed.
        git_commit: Of the checkout; "" outside one.
        git_dirty: Whether it had changes; None outside one.
        package_version: Of this package.
        started: UTC, RFC 3339.
        seconds: Wall time from start to the writing of the receipt.
    """

    run_id: Name
    command: str
    package_version: Name
    started: Time
    seconds: Amount
    git_commit: str = ""
    git_dirty: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment(Record):
    """The machine.

    Attributes:
        os: Name and version.
        machine: Architecture (`x86_64`, `aarch64`).
        cpu: Model name.
        cpu_flags: Features as the operating system or the compiler lists them.
        cores: Usable by this process.
        memory_bytes: Physical memory.
        python: Version.
        packages: Name → version.
        variables: The BITNET_ variables in force.
    """

    os: Name
    machine: Name
    cpu: str
    python: Name
    cpu_flags: tuple[str, ...] = ()
    cores: Count = 0
    memory_bytes: Count = 0
    packages: Mapping[str, str] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class HyperParameters(Record):
    """Of a model, as its file declares them; the terms are the field's own.

    Attributes:
        n_ctx: Trained context length, tokens.
        sub_norms: Whether attention and feed-forward end in an RMSNorm before their last projection.
        tied_head: Whether the output head is the token embedding.
    """

    n_layer: Count
    n_embd: Count
    n_ff: Count
    n_head: Count
    n_head_kv: Count
    head_dim: Count
    n_vocab: Count
    n_ctx: Count
    rope_theta: Amount
    rms_eps: Amount
    sub_norms: bool
    tied_head: bool

    @property
    def projection_rows(self) -> int:
        """Rows of all seven projections of all layers: q, k, v, o, gate, up, down."""
        n_q, n_kv = self.n_head * self.head_dim, self.n_head_kv * self.head_dim
        return self.n_layer * (n_q + 2 * n_kv + self.n_embd + 2 * self.n_ff + self.n_embd)

    @property
    def tensors(self) -> int:
        """Seven projections and two norms a layer, embedding and last norm; sub-norms and an untied head beside."""
        return self.n_layer * (9 + 2 * self.sub_norms) + 2 + (not self.tied_head)

    @property
    def projection_weights(self) -> int:
        """Weights of all seven projections of all layers."""
        n_q, n_kv = self.n_head * self.head_dim, self.n_head_kv * self.head_dim
        return self.n_layer * self.n_embd * (2 * n_q + 2 * n_kv + 3 * self.n_ff)


@dataclass(frozen=True, slots=True, kw_only=True)
class Model(Record):
    """A model file.

    Attributes:
        name: Unique in the receipt.
        file: Its name, without a folder.
        bytes: Its size.
        sha256: Of the file.
        arch: As declared.
        activation: Of the gated feed-forward.
        activation_source: `declared` or `architecture`.
        tensor_types: Type → number of tensors.
        weights_sha256: Of the decoded ternary weights.
        notices: What a reader should know about the file.
    """

    name: Name
    file: Name
    bytes: Count
    sha256: Sha256
    arch: Name
    activation: Name
    activation_source: Name
    hyper_parameters: HyperParameters
    tensor_types: Mapping[str, Count]
    weights_sha256: Sha256
    notices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerRecord(Record):
    """The tokenizer of a model.

    Attributes:
        model: Name of the model.
        source: Where it came from.
        sha256: Of its content.
        kind: `bpe` or `spm`.
        pre: Pre-tokenizer.
        pre_source: `declared`, or what was assumed and why.
        n_vocab: Vocabulary size.
        template_sha256: Of the chat template, None without one.
    """

    model: Name
    source: Literal["embedded", "file", "cache"]
    sha256: Sha256
    kind: Name
    pre: str
    pre_source: str
    n_vocab: Count
    template_sha256: Sha256 | None = None
