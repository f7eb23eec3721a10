"""From what players learnt to records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from harness import cost
from harness.case import Case
from harness.floor import below_floor, time_floors
from harness.record import Memory, Probes, Provenance, Record, Status
from harness.running.player import Player
from harness.suite import Suite, SuiteImplementation
from implementations.registry import LOWER_BOUND


@dataclass(frozen=True)
class Recorder:
    """Writes the records of one case."""

    suite: Suite
    case: Case
    provenance: Provenance
    gpu: dict[str, Any]  # what is known of it, for the floors of time; empty on a CPU

    def of_player(
        self,
        player: Player,
        referee: Player,
        statistics: dict[str, Any] | None,
        second: Player | None = None,
        guest: Player | None = None,
    ) -> Record:
        """An implementation's record; `second` is its A/A worker, `guest` the reference of another group."""
        status, reason = player.status, player.reason
        if status is None and player.agreement is not None and player.agreement.failures:
            status, reason = Status.DISAGREES, "; ".join(player.agreement.failures)
        if status is None:
            floors = time_floors(self.case, self.gpu, statistics or {}, _copied_bytes_per_s(referee))
            reason = below_floor(player.samples, floors, player.opened.get("skips_work", False))
            status = Status.IMPOSSIBLE if reason else None
        return self._record(
            player.implementation,
            status=status or Status.OK,
            reason=reason,
            grads_in_forward=player.opened.get("grads_in_forward", False),
            interpreted=player.opened.get("interpreted", False),
            skips_work=player.opened.get("skips_work", False),
            times=player.times(),
            again=second.times() if second is not None and second.samples else None,
            memory=player.memory,
            agreement=player.agreement,
            gemm_ms=referee.samples.get("gemm_ms", []),
            probes=_probes(referee, guest) if player.samples else None,
            input_statistics=statistics or {},
            input_checksum=referee.opened.get("input_checksum"),
            source_sha256=player.opened.get("source_sha256"),
            duration_s=round(player.seconds, 3),
        )

    def of_lower_bound(self) -> Record:
        """What every implementation must hold at least: the loss after the forward, then the gradients."""
        loss, gradients = cost.loss_floor_bytes(self.case), cost.gradient_floor_bytes(self.case)
        floors = Memory(
            fwd_no_grad_peak_bytes=loss,
            fwd_peak_bytes=loss,
            bwd_peak_bytes=gradients,
            fwd_bwd_peak_bytes=gradients,
            retained_bytes=loss,
        )
        return self._record(SuiteImplementation(name=LOWER_BOUND), status=Status.OK, analytic=True, memory=floors)

    def _record(self, implementation: SuiteImplementation, **learnt: Any) -> Record:
        return Record(
            suite=self.suite.name,
            case_id=self.case.id,
            case=self.case,
            implementation=implementation.name,
            path=implementation.path,
            options=implementation.options,
            expected=self.suite.expectation(implementation.name, self.case),
            reference=self.suite.reference,
            max_excess=self.suite.max_excess,
            gradient_floor_bytes=cost.gradient_floor_bytes(self.case),
            provenance=self.provenance,
            **learnt,
        )


def _probes(referee: Player, guest: Player | None) -> Probes | None:
    """The referee's turns, but for the GEMM, which is the record's own; None if it had none."""
    if not referee.samples:
        return None
    beside = {key: samples for key, samples in referee.samples.items() if key != "gemm_ms"}
    reference = guest.times() if guest is not None and guest.samples else None
    return Probes(**beside, copy_bytes=referee.opened.get("copy_bytes", 0), reference=reference)


def _copied_bytes_per_s(referee: Player) -> float:
    """What the fastest copy reached; 0 where there was none."""
    fastest_ms = min(referee.samples.get("copy_ms", []), default=0.0)
    return referee.opened.get("copy_bytes", 0) / fastest_ms * 1e3 if fastest_ms > 0 else 0.0
