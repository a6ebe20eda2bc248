"""Which cells a query means: pandas' query syntax over columns of obs, and nothing that runs code.

The text is parsed and looked at piece by piece; comparisons, ``and``, ``or``, ``not``, ``in`` and a few questions to a column are done
here, and everything else is refused. pandas' own evaluation is never called.
"""

from __future__ import annotations

import ast
import io
import logging
import operator
import tokenize
import warnings
from functools import reduce
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from scamac_scale.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd
    from numpy.typing import NDArray
    from pandas.arrays import BooleanArray

logger = logging.getLogger(__name__)

MAX_LETTERS = 10_000
INDEX = "index"
"""Stands for the names of the cells, unless a column has this name."""

_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_QUESTIONS: dict[str, Callable[[Any], Any]] = {
    "isna": lambda column: column.isna(),
    "isnull": lambda column: column.isna(),
    "notna": lambda column: column.notna(),
    "notnull": lambda column: column.notna(),
}
"""What a column may be asked, without arguments."""
_MIRRORED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.Gt,
    ast.LtE: ast.GtE,
    ast.Gt: ast.Lt,
    ast.GtE: ast.LtE,
    ast.Eq: ast.Eq,
    ast.NotEq: ast.NotEq,
}


class _RefusedError(Exception):
    """Why a query cannot be used, in one clause."""


def chosen_by(query: str, obs: pd.DataFrame, name: str) -> NDArray[np.bool_]:
    """Mark the cells that a query means.

    Parameters
    ----------
    query
        Such as ``donor != "D7" and not is_doublet``: names of columns (in backticks where they are no plain names, ``index`` for the
        names of the cells), numbers, texts, lists of these; ``== != < <= > >= in not in``; ``and or not & | ~``; ``isna()``,
        ``notna()``, ``isin([...])``.
    obs
        N rows.
    name
        Of the input, for messages.

    Returns
    -------
    ndarray
        (N,) marks, as ``obs.query`` chooses rows where no value is missing; see `_compared` where some are. ``and``, ``or`` and ``not`` of
        what is unknown are those of Kleene, and a cell for which the whole is unknown is not taken, which the log counts.

    Raises
    ------
    InputError
        If the query cannot be read, has something else in it, names no column, or does not answer yes or no for each cell.
    """
    try:
        if len(query) > MAX_LETTERS:
            raise _RefusedError(
                f"it has more than {MAX_LETTERS:,} letters; write the cells to a file and name it with --cells"
            )
        text, quoted = _plain(query.strip())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd backslashes in texts
            tree = ast.parse(text, mode="eval")
        found = _Reader(obs, quoted).value(tree.body)
        answers = _answers(found)
    except _RefusedError as refused:
        raise InputError(f"{name}: ingest.where={query!r} cannot be used: {refused}.") from None
    except (SyntaxError, ValueError, tokenize.TokenError, IndentationError) as error:
        told = getattr(error, "msg", None) or str(error).splitlines()[0]
        raise InputError(
            f"{name}: ingest.where={query!r} cannot be read ({told}); expected such as 'donor != \"D7\" and age > 30'."
        ) from error
    except (RecursionError, MemoryError) as error:
        raise InputError(f"{name}: ingest.where is nested too deeply; write the cells to a file.") from error
    if n_unknown := int(answers.isna().sum()):
        logger.info(
            "%s: of %d cells values are missing so that %s is unknown; they are not taken", name, n_unknown, query
        )
    return np.asarray(answers.fillna(False), dtype=bool)


def _plain(query: str) -> tuple[str, dict[str, str]]:
    """Turn pandas' syntax into Python's: names in backticks become plain ones, ``&`` and ``|`` bind as ``and`` and ``or``."""
    quoted: dict[str, str] = {}
    pieces, is_text, sign = [], False, ""
    at = 0
    while at < len(query):
        letter = query[at]
        if is_text:
            is_text = letter != sign
            if letter == "\\" and at + 1 < len(query):
                at, letter = at + 1, query[at : at + 2]
        elif letter in "\"'":
            is_text, sign = True, letter
        elif letter == "`":
            end = query.find("`", at + 1)
            if end < 0:
                raise _RefusedError("a backtick is not closed")
            stand_in = f"scamac_quoted_{len(quoted)}"
            quoted[stand_in] = query[at + 1 : end]
            at, letter = end, f" {stand_in} "
        pieces.append(letter)
        at += 1
    words = {"&": "and", "|": "or"}
    tokens = [
        (tokenize.NAME, words[token.string]) if token.type == tokenize.OP and token.string in words else token[:2]
        for token in tokenize.generate_tokens(io.StringIO("".join(pieces)).readline)
    ]
    return tokenize.untokenize(tokens).strip(), quoted


def _answers(found: Any) -> BooleanArray:
    """Take what a piece gives as yes, no or unknown of each cell; pandas joins these by Kleene's logic."""
    import pandas as pd

    if not isinstance(found, pd.Series):
        raise _RefusedError("it names no column, and so does not tell cells apart")
    if isinstance(found.dtype, pd.CategoricalDtype):
        found = found.astype(found.cat.categories.dtype if not found.isna().any() else object)
    if pd.api.types.is_bool_dtype(found.dtype) or (
        found.dtype == object and pd.api.types.infer_dtype(found, skipna=True) == "boolean"
    ):
        return cast("BooleanArray", found.astype("boolean").array)
    raise _RefusedError(f"it gives {found.dtype}, and not yes or no for each cell")


class _Reader:
    """Evaluates the pieces of one query."""

    def __init__(self, obs: pd.DataFrame, quoted: dict[str, str]) -> None:
        self._obs = obs
        self._quoted = quoted

    def value(self, node: ast.expr) -> Any:  # Any: a column, a plain value or a list
        """Evaluate a piece."""
        if isinstance(node, ast.Name):
            return self._column(self._quoted.get(node.id, node.id))
        if isinstance(node, ast.Constant) and isinstance(node.value, (str, int, float)):
            return node.value
        if isinstance(node, ast.List | ast.Tuple):
            return [self._constant(item) for item in node.elts]
        if isinstance(node, ast.BoolOp):
            join = operator.and_ if isinstance(node.op, ast.And) else operator.or_
            return self._series(reduce(join, [_answers(self.value(part)) for part in node.values]))
        if isinstance(node, ast.UnaryOp):
            return self._unary(node)
        if isinstance(node, ast.Compare):
            return self._comparison(node)
        if isinstance(node, ast.Call):
            return self._question(node)
        raise _RefusedError(
            f"{_shown(node)} is not taken; it may compare columns with values, and join comparisons by and, or, not"
        )

    def _series(self, answers: BooleanArray) -> Any:
        import pandas as pd

        return pd.Series(answers, index=self._obs.index)

    def _constant(self, node: ast.expr) -> Any:
        found = self.value(node)
        if not isinstance(found, (str, int, float)):
            raise _RefusedError(f"{_shown(node)} stands in a list, which may hold texts and numbers")
        return found

    def _column(self, name: str) -> Any:
        import pandas as pd

        if name not in self._obs:
            if name == INDEX:
                return pd.Series(self._obs.index.astype(object), index=self._obs.index)
            known = ", ".join(map(str, self._obs.columns)) or "none"
            raise _RefusedError(f"obs has no column {name!r}; it has {known}, and texts stand in quotes")
        column = self._obs[name]
        if isinstance(column, pd.DataFrame):
            raise _RefusedError(f"obs has {column.shape[1]} columns {name!r}")
        return column

    def _unary(self, node: ast.UnaryOp) -> Any:
        inner = self.value(node.operand)
        if isinstance(node.op, (ast.Not, ast.Invert)):
            return self._series(~_answers(inner))  # of what is unknown the opposite is unknown, too
        if isinstance(inner, (int, float)) and not isinstance(inner, bool):
            return -inner if isinstance(node.op, ast.USub) else inner
        raise _RefusedError(f"{_shown(node)} is no number")

    def _comparison(self, node: ast.Compare) -> Any:
        sides = [self.value(side) for side in (node.left, *node.comparators)]
        answers = []
        for left, rule, right in zip(sides[:-1], node.ops, sides[1:], strict=True):
            if not (hasattr(left, "notna") or hasattr(right, "notna")):
                raise _RefusedError(f"{_shown(node)} compares no column")
            answers.append(_answers(_compared(left, rule, right)))
        return self._series(reduce(operator.and_, answers))

    def _question(self, node: ast.Call) -> Any:
        asked = node.func
        if not isinstance(asked, ast.Attribute) or node.keywords or not isinstance(asked.value, ast.Name):
            raise _RefusedError(
                f"{_shown(node)} is a call, and nothing is called; columns may be asked isna(), notna(), isin([...])"
            )
        column = self.value(asked.value)
        if asked.attr in _QUESTIONS and not node.args:
            return _QUESTIONS[asked.attr](column)
        if asked.attr == "isin" and len(node.args) == 1 and isinstance(node.args[0], ast.List | ast.Tuple):
            return _compared(column, ast.In(), self.value(node.args[0]))
        raise _RefusedError(
            f"{_shown(node)} is a call, and nothing is called; columns may be asked isna(), notna(), isin([...])"
        )


def _compared(left: Any, rule: ast.cmpop, right: Any) -> Any:
    """Compare a column with a value, a list, or another column.

    However a column is stored, a missing value is another one than any, itself too (``==`` and ``in`` are no, ``!=`` and ``not in`` yes), and
    whether it is larger or smaller is unknown.
    """
    import pandas as pd

    if isinstance(rule, (ast.In, ast.NotIn)) or isinstance(right, list) or isinstance(left, list):
        if isinstance(left, list):
            left, right = right, left
        is_in = not isinstance(rule, (ast.NotIn, ast.NotEq))
        if not isinstance(left, pd.Series) or not isinstance(rule, (ast.In, ast.NotIn, ast.Eq, ast.NotEq)):
            raise _RefusedError("a list stands behind in, not in, == or !=, and a column in front")
        if not isinstance(right, list):
            raise _RefusedError('behind in stands a list, such as ["D1", "D2"]')
        for value in right:
            _refuse_other_type(left, value)
        return left.isin(right).astype("boolean") == is_in
    if type(rule) not in _COMPARISONS:
        raise _RefusedError("is and is not are not taken; write ==, !=, isna() or notna()")
    if not isinstance(left, pd.Series):
        left, rule, right = right, _MIRRORED[type(rule)](), left
    if not isinstance(right, pd.Series):
        _refuse_other_type(left, right)
    if _is_category(left) and _is_category(right) and not left.cat.categories.equals(right.cat.categories):
        left, right = left.astype(object), right.astype(object)
    is_missing = left.isna() | right.isna() if isinstance(right, pd.Series) else left.isna()
    of_missing = isinstance(rule, ast.NotEq) if isinstance(rule, (ast.Eq, ast.NotEq)) else pd.NA
    try:
        return _COMPARISONS[type(rule)](left, right).astype("boolean").mask(is_missing, of_missing)
    except (TypeError, ValueError, OverflowError) as error:
        held = "categories without an order" if _is_category(left) else str(left.dtype)
        raise _RefusedError(f"the column {left.name!r} holds {held}, which cannot be compared so") from error


def _is_category(column: Any) -> bool:
    import pandas as pd

    return isinstance(getattr(column, "dtype", None), pd.CategoricalDtype)


def _refuse_other_type(column: pd.Series[Any], value: Any) -> None:
    """Refuse to compare text with a number: the answer would be the same for all cells."""
    import pandas as pd

    held = column.cat.categories if _is_category(column) else column
    kind = pd.api.types.infer_dtype(held, skipna=True)
    is_text = isinstance(value, str)
    if kind == "string" and not is_text:
        raise _RefusedError(f"the column {column.name!r} holds text, so that {value!r} must stand in quotes")
    if is_text and (pd.api.types.is_numeric_dtype(held.dtype) or kind in ("integer", "floating", "boolean")):
        raise _RefusedError(
            f"the column {column.name!r} holds {held.dtype}, so that {value!r} must not stand in quotes"
        )


def _shown(node: ast.expr) -> str:
    text = ast.unparse(node)
    return repr(text if len(text) <= 60 else f"{text[:60]} ...")
