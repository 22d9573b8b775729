"""The report on a run, as a table for a terminal and as one flat JSON object."""

from collections.abc import Sequence
from dataclasses import dataclass

from chaos.checker import KINDS, Violation

#: Violations of each kind that are printed.
PRINTED = 5


@dataclass(frozen=True)
class Options:
    """The options of a run. `strip` removes conditional creates on the way to HAPI, which must lead to violations."""

    seed: int = 1
    kills: int = 100
    seconds: float = 900.0
    store: str = "postgresql"
    strip: bool = False

    @property
    def command(self) -> str:
        """The command that repeats the run, except for the timing."""
        strip = " STRIP=1" if self.strip else ""
        return f"make chaos SEED={self.seed} KILLS={self.kills} SECONDS={self.seconds:.0f} STORE={self.store}{strip}"


@dataclass(frozen=True)
class Report:
    """The figures of a run by group and name, and the violations that it found."""

    options: Options
    figures: dict[str, dict[str, float]]
    violations: Sequence[Violation]

    @property
    def kills(self) -> int:
        return int(sum(self.figures["kills"].values()))

    @property
    def passed(self) -> bool:
        """Whether there are no violations after the number of kills that the options demand."""
        return not self.violations and self.kills >= self.options.kills

    def count(self, kind: str) -> int:
        """Return the number of violations of a kind."""
        return sum(violation.kind == kind for violation in self.violations)

    def table(self) -> str:
        """Return the figures, the violations, and the command that repeats the run."""
        lines = []
        for group, figures in self.figures.items():
            lines += [f"{group:<12}{name:<32}{number:>10,.0f}" for name, number in figures.items()]
        lines += [f"{'violations':<12}{kind:<32}{self.count(kind):>10,}  {meaning}" for kind, meaning in KINDS.items()]
        for kind in KINDS:
            violations = [violation for violation in self.violations if violation.kind == kind]
            lines += [f"{kind}: {violation.text[:1000]}" for violation in violations[:PRINTED]]
        if self.kills < self.options.kills:
            lines.append(f"only {self.kills} of {self.options.kills} kills: set a larger SECONDS")
        return "\n".join([*lines, f"{'passed' if self.passed else 'FAILED'}; to repeat: {self.options.command}"])

    @property
    def flat(self) -> dict[str, float | str]:
        """All figures in one flat object: `kills_proxy`, `violations_lost`."""
        counts = {"violations": {kind: float(self.count(kind)) for kind in KINDS}}
        return {"seed": self.options.seed, "store": self.options.store} | {
            f"{group}_{name}".replace(" ", "_"): round(number, 1)
            for group, figures in (self.figures | counts).items()
            for name, number in figures.items()
        }
