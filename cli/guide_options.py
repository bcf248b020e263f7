"""The options of a guide on the command line: ``name=value``, read as numbers, whole numbers and flags."""

import math

WHOLE_MAX = 2**53  # largest range of floating point without gaps between whole numbers


class Options(dict[str, str]):
    """The options of a guide, by name. Methods raise ValueError for an option that is wrong, or missing without a
    default."""

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number."""
        if key not in self:
            if default is None:
                raise ValueError(f'it needs {key}=NUMBER')
            return default
        try:
            value = float(self[key])
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise ValueError(f'{key}={self[key]} is not a number')
        return value

    def whole(self, key: str, default: int | None = None, least: int = 0) -> int:
        """A whole number of ``least`` or more."""
        value = self.number(key, default)
        if value != int(value) or abs(value) >= WHOLE_MAX:
            raise ValueError(f'{key}={self[key]} is not a whole number')
        if key in self and value < least:
            raise ValueError(f'{key}={self[key]} is less than {least}')
        return int(value)

    def flag(self, key: str) -> bool:
        """1 or 0; 0 by default."""
        value = self.get(key, '0')
        if value not in ('0', '1'):
            raise ValueError(f'{key}={value}: give 1 or 0')
        return value == '1'

    def at_once(self) -> dict[str, int]:
        """The argument of guides that render candidates."""
        return {'max_candidates': self.whole('at_once', least=1)} if 'at_once' in self else {}
