"""A record: what was learnt of one implementation on one case. One JSON line each; see `harness.running.run_directory`.

Numbers are raw: samples in ms, peaks in bytes, errors as fractions. Medians are computed when records are read.

Format history
1  first format. Fields that came later have defaults, so that older records load: options, figures, source_sha256,
   times.position, again, probes, skips_work, times.stopped,
   times.device_allocations
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from harness.case import Case
from harness.checks import Checks, Diagnostics

Milliseconds = Annotated[float, Field(ge=0)]
Bytes = Annotated[int, Field(ge=0)]


class Status(StrEnum):
    """How an implementation fared on a case. Everything but OK comes with a reason."""

    OK = "ok"  # every phase of the suite ran, and loss and gradients agree with the oracle
    DISAGREES = "disagrees"  # it ran, and its loss or a gradient is further off than the suite allows
    IMPOSSIBLE = "impossible"  # faster than the hardware can be; believe neither the time nor the harness
    OUT_OF_MEMORY = "out_of_memory"
    TIMEOUT = "timeout"
    CRASHED = "crashed"  # an exception, a signal, a broken protocol
    UNSUPPORTED = "unsupported"  # the implementation does not offer this case
    UNAVAILABLE = "unavailable"  # its library is not installed, or lacks the function


_CALLS_AN_ORDER_WAS_KEPT = 500.0  # by rows `ours` before they said so themselves

NOT_RUN = frozenset({Status.UNSUPPORTED, Status.UNAVAILABLE})
FAILED = frozenset({Status.OUT_OF_MEMORY, Status.TIMEOUT, Status.CRASHED})
COMPLETED = frozenset({Status.OK, Status.DISAGREES, Status.IMPOSSIBLE})


# why there were no more rounds: the ratio to the reference was known to the suite's target, or the budget was spent
Stopped = Literal["known", "budget"]


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Times(_Frozen):
    """Raw samples, in the order they were taken; equal lengths. forward + backward of one sample is its fwd+bwd."""

    fwd_no_grad_ms: list[Milliseconds] = []
    fwd_ms: list[Milliseconds] = []
    bwd_ms: list[Milliseconds] = []
    fwd_bwd_ms: list[Milliseconds] = []
    round: list[int] = []  # the round each sample was taken in
    position: list[int] = []  # place of the turn in its round, 0 for the first; empty in older records
    sm_clock_mhz: list[int] = []  # read through NVML right after each sample; empty where there is no NVML
    power_w: list[float] = []
    temperature_c: list[int] = []
    throttle_reasons: list[int] = []  # NVML's bits
    device_allocations: list[int] = []  # cudaMalloc's in each sample, by torch's allocator; empty on a CPU and in older
    first_call_s: float | None = None  # the first forward and backward, with whatever they compile
    settle_s: float | None = None  # all calls before the first sample: compiling, autotuning, warming up
    stopped: Stopped | None = None  # why it had no more rounds; None of what failed, and in older records
    lead_in_ms: float = 0.0  # of the case's GEMM before every timed call, untimed

    @model_validator(mode="after")
    def _equal_lengths(self) -> Times:
        lengths = {len(s) for s in (self.fwd_no_grad_ms, self.fwd_ms, self.bwd_ms, self.fwd_bwd_ms, self.round)}
        traces = (self.position, self.sm_clock_mhz, self.power_w, self.temperature_c, self.throttle_reasons)
        lengths |= {len(trace) for trace in (*traces, self.device_allocations) if trace}
        if len(lengths) > 1:
            raise ValueError(f"samples of unequal number: {sorted(lengths)}")
        return self


class Probes(_Frozen):
    """What took a turn in the rounds of a record beside its row; lists as in Times, and as long as `gemm_ms`."""

    copy_ms: list[Milliseconds] = []  # a copy within the device's memory
    copy_bytes: Bytes = 0  # that one copy reads and writes, together
    round: list[int] = []
    position: list[int] = []
    sm_clock_mhz: list[int] = []  # after the GEMM of each sample
    power_w: list[float] = []
    temperature_c: list[int] = []
    throttle_reasons: list[int] = []
    reference: Times | None = None  # in these rounds, where the reference's own record is of another group of workers

    @model_validator(mode="after")
    def _equal_lengths(self) -> Probes:
        lists = (value for value in self.__dict__.values() if isinstance(value, list))
        lengths = {len(samples) for samples in lists if samples}
        if len(lengths) > 1:
            raise ValueError(f"samples of unequal number: {sorted(lengths)}")
        return self


class PeakBlock(_Frozen):
    """Blocks of the allocator that were live at the peak of forward + backward and came from one place in the code."""

    bytes: Bytes  # of all of them
    count: int
    frames: list[str]  # file:line function, the innermost first; empty where no Python was running


class Memory(_Frozen):
    """Allocator peaks above what was live before the call: inputs, flush buffer and cuBLAS workspace do not count."""

    fwd_no_grad_peak_bytes: Bytes
    fwd_peak_bytes: Bytes
    bwd_peak_bytes: Bytes  # above what was live before the backward, so without what the forward retained
    fwd_bwd_peak_bytes: Bytes  # above what was live before the forward: what a training step must find free
    retained_bytes: Bytes  # live between forward and backward: saved tensors and the loss
    leaked_bytes: Bytes | None = None  # live after forward and backward with their gradients dropped, and not before
    reserved_growth_bytes: Bytes | None = None  # of torch's allocator in forward + backward: what it took of the device
    device_growth_bytes: Bytes | None = None  # of the device's used memory at the same time, by NVML
    peak_blocks: list[PeakBlock] = []  # the largest, if the suite asks for attribution


class Agreement(_Frozen):
    """Scale-free errors against the fp64 oracle; excess = error / error of eager arithmetic in the same dtype.

    None where the quantity does not exist: no excess where the true gradient is zero, no error of a gradient that is
    not finite (`reason` says so).
    """

    loss_error: float | None  # |L - L64| / max(|L64|, mean |lse|)
    loss_limit: float
    grad_input_error: float | None  # norm(g - g64) / norm(g64)
    grad_weight_error: float | None
    grad_bias_error: float | None = None
    grad_input_excess: float | None
    grad_weight_excess: float | None
    grad_bias_excess: float | None = None
    grad_input_row_error_p99: float | None = None  # 99th percentile over rows of norm(row error) / norm(row)
    grad_weight_row_error_p99: float | None = None
    sampled_rows: int | None = None  # rows of dC the oracle covered; None if all
    diagnostics: Diagnostics | None = None
    eager_diagnostics: Diagnostics | None = None  # the same of eager arithmetic, to read them by
    checks: Checks | None = None
    figures: dict[str, float] = {}  # what the implementation says of itself; not judged, but see Record.amortised_ms
    failures: list[str] = []  # every limit that was broken, in words; empty means the implementation agrees


class Expectation(_Frozen):
    """What the suite said beforehand about this row."""

    status: list[Status]
    reason: str


class Provenance(_Frozen):
    """Where a record comes from; everything that could explain a number that does not repeat."""

    commit: str | None
    dirty: bool | None
    argv: list[str]
    started: str  # ISO 8601, UTC
    device: str  # "cuda" or "cpu"
    device_name: str
    environment: dict[str, JsonValue]  # versions, driver, clocks, variables that change kernels

    @property
    def code(self) -> str:
        """`0123456789ab and changes`: the commit, and whether the tree was any other."""
        commit = "unknown commit" if self.commit is None else self.commit[:12]
        return f"{commit} and changes" if self.dirty else commit


class Record(_Frozen):
    """One line of records.jsonl. Invariants make a wrong record unrepresentable."""

    format: Literal[1] = 1
    suite: str
    case_id: str
    case: Case
    implementation: str
    path: str | None = None  # pkg.mod:obj of a suite's own implementation
    options: dict[str, JsonValue] = {}
    source_sha256: str | None = None  # of the file that implements it, which no commit need know
    status: Status
    reason: str | None = None
    expected: Expectation | None = None
    analytic: bool = False  # computed, not measured: the lower bound
    grads_in_forward: bool = False
    interpreted: bool = False  # ran in the Triton interpreter: its time means nothing and is not recorded
    skips_work: bool = False  # as it declares: the arithmetic's floor does not bind it; False in older records
    times: Times | None = None
    again: Times | None = None  # of a second worker of the same implementation in the same rounds: an A/A
    memory: Memory | None = None
    agreement: Agreement | None = None
    reference: str  # the row that the suite compares others with
    max_excess: float
    gemm_ms: list[Milliseconds] = []  # the same rounds' N x D x V cuBLAS product
    probes: Probes | None = None  # None for rows without samples, and in older records
    gradient_floor_bytes: Bytes
    input_statistics: dict[str, JsonValue] = {}
    input_checksum: str | None = None
    duration_s: float = 0.0
    provenance: Provenance

    @model_validator(mode="after")
    def _consistent(self) -> Record:
        if (self.status is Status.OK) != (self.reason is None):
            raise ValueError(
                f"status {self.status} with reason {self.reason!r}: ok has none, every other status has one"
            )
        if self.status in NOT_RUN and (self.times or self.memory or self.agreement):
            raise ValueError(f"status {self.status} of something that never ran carries measurements")
        if self.status in (Status.OK, Status.DISAGREES) and not self.analytic:
            if self.agreement is None:
                raise ValueError(f"status {self.status} without agreement: nothing was compared")
            if bool(self.agreement.failures) != (self.status is Status.DISAGREES):
                raise ValueError(f"status {self.status} contradicts failures {self.agreement.failures}")
        if self.case_id != self.case.id:
            raise ValueError(f"case_id {self.case_id!r} is not the id of the case, {self.case.id!r}")
        if self.interpreted and self.times is not None and self.times.fwd_bwd_ms:
            raise ValueError("times of a row that ran in the Triton interpreter")
        return self

    @property
    def amortised_ms(self) -> float:
        """A call's share, in ms, of what the implementation does rarely and no sample holds, as it says; 0 from most.

        Records from before it said so have the cost of a vocabulary order alone.
        """
        figures = self.agreement.figures if self.agreement is not None else {}
        return figures.get("amortised_ms", figures.get("order_ms", 0.0) / self.amortised_calls)

    @property
    def amortised_calls(self) -> float:
        """Over how many calls that work is kept."""
        figures = self.agreement.figures if self.agreement is not None else {}
        return figures.get("amortised_calls", _CALLS_AN_ORDER_WAS_KEPT)

    @property
    def as_expected(self) -> bool:
        """Whether this row is no failure of the run: ok, not offered, or foreseen by the suite."""
        if self.expected is not None and self.status in self.expected.status:
            return True
        return self.status is Status.OK or self.status in NOT_RUN
