"""Result rows in Python: a sequence of plain dictionaries that can become a table or a pandas DataFrame."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, overload

from profiler.errors import ProfileError
from profiler.show import output
from profiler.units import UNKNOWN, bytes_text, printable, rate_text

if TYPE_CHECKING:
    import pandas

Row: TypeAlias = dict[str, Any]
SHOWN = 20  # rows in a repr


class Rows(Sequence[Row]):
    """Rows of ``profiler.fit``, ``sweep`` or ``load``: dictionaries exactly like those of ``-o json``.

    ``run`` is the id of their stored run, or None. ``refused`` lists the models without rows, with the reasons.
    ``repr`` shows the main figures; ``to_pandas()`` returns a DataFrame with all of them.
    """

    def __init__(self, rows: Iterable[Row], run: str | None = None, refused: Sequence[str] = ()) -> None:
        self._rows = tuple(rows)
        self.run = run
        self.refused = tuple(refused)

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows)

    @overload
    def __getitem__(self, index: int) -> Row: ...

    @overload
    def __getitem__(self, index: slice) -> Rows: ...

    def __getitem__(self, index: int | slice) -> Row | Rows:
        if isinstance(index, slice):
            return Rows(self._rows[index], self.run, self.refused)
        return self._rows[index]

    def __repr__(self) -> str:
        of_run = f" of run {printable(self.run)}" if self.run else ""
        lines = [f"<{len(self)} row{'s' * (len(self) != 1)}{of_run}>"]
        if self._rows:
            lines.append(output.render(self._rows[:SHOWN], _cells, "table").rstrip("\n"))
        if len(self) > SHOWN:
            lines.append(f"… and {len(self) - SHOWN:,} more")
        return "\n".join([*lines, *self.refused])

    def to_pandas(self) -> pandas.DataFrame:
        """A DataFrame with one line per row and one column per figure.

        The column of a nested field is named by its path, joined by dots: ``decode.tps``, ``case.context``. Lists
        stay lists, and unknown values are missing. Raises ProfileError if pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            what = printable(" ".join(str(error).split()))
            raise ProfileError(
                f"to_pandas needs pandas, which cannot be imported: {what}", "pip install pandas"
            ) from None
        return pandas.DataFrame(dict(output.flat("", self._rows)), index=range(len(self)))


def _cells(row: Mapping[str, Any]) -> dict[str, str]:
    """The cells with the main figures of a row; a prediction has no ``case``."""
    case, predicted = row.get("case") or row, "case" not in row
    peak = row["peak_bytes"]["value"] if predicted else row["memory"].get("process_peak_bytes")
    return {
        "model": printable(case["model"], 40),
        "quant": printable(case["quant"], 30),
        "context": f"{case['context']:,}",
        "batch": f"{case['batch']:,}",
        **({"verdict": row["verdict"]} if predicted else {"outcome": printable(row["outcome"])}),
        "prefill t/s": _rate(row["prefill"], predicted),
        "decode t/s": _rate(row["decode"], predicted),
        "peak": bytes_text(peak),
    }


def _rate(phase: Mapping[str, Any] | None, predicted: bool) -> str:
    if phase is None:
        return UNKNOWN
    return rate_text(phase["tps"]["value"] if predicted else phase["tps"])
