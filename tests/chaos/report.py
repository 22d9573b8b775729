"""What a run did and found, as a table for a terminal and as one flat JSON object."""

from collections.abc import Sequence
from dataclasses import dataclass

from chaos.checker import KINDS, Violation

#: How many violations of each kind are told whole.
TOLD = 5


@dataclass(frozen=True)
class Options:
    """What a run is to be; `strip` takes conditional create away, which must be found."""

    seed: int = 1
    kills: int = 100
    seconds: float = 900.0
    store: str = "postgresql"
    strip: bool = False

    @property
    def again(self) -> str:
        """The command that does the same again; what the machine does meanwhile differs."""
        strip = " STRIP=1" if self.strip else ""
        return f"make chaos SEED={self.seed} KILLS={self.kills} SECONDS={self.seconds:.0f} STORE={self.store}{strip}"


@dataclass(frozen=True)
class Report:
    """Figures of a run by group and name, and all that was found wrong."""

    options: Options
    figures: dict[str, dict[str, float]]
    violations: Sequence[Violation]

    @property
    def kills(self) -> int:
        return int(sum(self.figures["kills"].values()))

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong after as many kills as were wanted."""
        return not self.violations and self.kills >= self.options.kills

    def of(self, kind: str) -> int:
        """Count the violations of a kind."""
        return sum(violation.kind == kind for violation in self.violations)

    def table(self) -> str:
        """Give the figures, then what was found, then how to do it again."""
        lines = []
        for group, figures in self.figures.items():
            lines += [f"{group:<12}{name:<32}{number:>10,.0f}" for name, number in figures.items()]
        lines += [f"{'violations':<12}{kind:<32}{self.of(kind):>10,}  {meaning}" for kind, meaning in KINDS.items()]
        for kind in KINDS:
            lines += [f"{kind}: {each.what[:1000]}" for each in [v for v in self.violations if v.kind == kind][:TOLD]]
        if self.kills < self.options.kills:
            lines.append(f"only {self.kills} kills instead of {self.options.kills}: give it more SECONDS")
        return "\n".join([*lines, f"{'as wanted' if self.passed else 'FAILED'}; again: {self.options.again}"])

    @property
    def flat(self) -> dict[str, float | str]:
        """Give all figures in one flat object: `kills_proxy`, `violations_lost`."""
        found = {"violations": {kind: float(self.of(kind)) for kind in KINDS}}
        return {"seed": self.options.seed, "store": self.options.store} | {
            f"{group}_{name}".replace(" ", "_"): round(number, 1)
            for group, figures in (self.figures | found).items()
            for name, number in figures.items()
        }
