"""Evaluation of the equations in a line of text: ``6 days/week * 2 weeks/month = 12 days/month`` holds.

Units and words between numbers are skipped. A left side that is no arithmetic, such as ``x + 3``, can't be evaluated
and counts as no equation.
"""

import ast
import operator
import re
from collections.abc import Iterator
from itertools import pairwise

NUMBER = r"\d[\d,]*(?:\.\d+)?|\.\d+"
#: A sign is an operator only if a number follows it, possibly after a currency; ``days/month`` has no operator.
TOKEN = re.compile(rf"({NUMBER})|([-+*/x\u00d7÷](?=\s*[^\w\s(.]?\s*[\d(.]))|([()])|(%)|([A-Za-z]+)")
RIGHT_SIDE = re.compile(rf"\s*[^\w\s.(-]?\s*(-?)[^\w\s.(-]?({NUMBER})(?:/({NUMBER}))?\s*(%?)")
#: Largest number of words between a number and the operator after it, as in ``3 bars per box * 2``.
WORDS = 3
SIGNS = {"x": "*", "\u00d7": "*", "÷": "/"}
OPERATIONS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
#: Largest difference of the two sides, relative to a right side above 1: written numbers are rounded to a hundredth.
ROUNDING = 0.0051


def holds(line: str) -> bool:
    """Return whether every equation in a line is true, as far as it can be evaluated."""
    return all(abs(left - right) <= ROUNDING * max(1.0, abs(right)) for left, right in equations(line))


def equations(line: str) -> Iterator[tuple[float, float]]:
    """Yield the values of both sides of each equation in a line whose left side can be evaluated."""
    sides = line.split("=")
    for left, right in pairwise(sides):
        if (found := RIGHT_SIDE.match(right)) and (value := _executed(left)) is not None:
            sign, digits, divisor, percent = found.groups()
            stated = _number(digits) * (-1 if sign else 1) / (100 if percent else 1)
            if not divisor:
                yield value, stated
            elif _number(divisor):
                yield value, stated / _number(divisor)


def _executed(text: str) -> float | None:
    """Return the value of the arithmetic at the end of a text; None if there is none, or only a number."""
    expression = _expression(text)
    if not re.search(r"[-+*/]", expression):
        return None
    try:
        return _value(ast.parse(expression, mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError, OverflowError, RecursionError, KeyError, MemoryError):
        return None


def _expression(text: str) -> str:
    """Return the longest arithmetic at the end of a text. It is read backwards: a number, an operator, a number, ..."""
    found: list[str] = []
    expects_number, depth, words, behind = True, 0, 0, len(text)
    for match in reversed(list(TOKEN.finditer(text))):
        number, sign, bracket, percent, word = match.groups()
        if word:
            words += 1
            if words > WORDS and expects_number and found:
                break
            continue
        if number and expects_number:
            found.append(str(_number(number)))
            expects_number = False
        elif number and found[-1] == "(" and match.end() == behind:  # 2(3 + 4)
            found += ["*", str(_number(number))]
        elif percent and expects_number:
            found.append("/100.0")
        elif bracket == ")" and expects_number:
            found.append(")")
            depth += 1
        elif bracket == "(" and not expects_number and depth:
            found.append("(")
            depth -= 1
        elif sign and not expects_number:
            found.append(SIGNS.get(sign, sign))
            expects_number = True
        else:
            break
        words, behind = 0, match.start()
    while found and found[-1] in "+-*/":  # drop a dash before the expression, which is no sign
        found.pop()
    return "".join(reversed(found))


def _number(digits: str) -> float:
    return float(digits.replace(",", ""))


def _value(node: ast.expr) -> float:
    match node:
        case ast.Constant(value=float() as value):
            return value
        case ast.BinOp(left=left, op=sign, right=right):
            return OPERATIONS[type(sign)](_value(left), _value(right))
    raise ValueError("no arithmetic")
