"""The many spellings of one sign or name, as data: characters, LaTeX commands and plain words."""
# ruff: noqa: RUF001

import unicodedata


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _spelled(spellings: dict[str, str]) -> dict[str, str]:
    """{"<=": "le leq"} as {"le": "<=", "leq": "<="}."""
    return {word: canonical for canonical, words in spellings.items() for word in words.split()}


def _compatible(character: str) -> str:
    return unicodedata.normalize("NFKC", character)


def _greek(letters: str) -> dict[str, str]:
    names = {c: unicodedata.name(c).split()[-1].lower().replace("lamda", "lambda") for c in letters}
    return {c: f"\\{name.capitalize() if c.isupper() else name} " for c, name in names.items()}


# Functions that apply to what follows them.
FUNCTIONS = _words(
    "sin cos tan cot sec csc arcsin arccos arctan arccot arcsec arccsc sinh cosh tanh coth sech csch "
    "arcsinh arccosh arctanh ln log lg exp sqrt gcd lcm max min cis"
)

# Commands without a meaning here: an answer that holds one is compared as text.
UNREADABLE = _words(
    "int lim iint oint dots vdots bmod to cap subset subseteq notin not neg nless ngeq "
    "implies iff Rightarrow Leftrightarrow rightarrow longrightarrow cong sim parallel perp forall exists"
)

# Commands that change only the look.
SILENT = _words(
    "quad qquad displaystyle textstyle scriptstyle limits nolimits thinspace boxed fbox mathbf mathit mathsf "
    "boldsymbol bm mathcal mathscr mathopen mathclose bigl bigr Bigl Bigr biggl biggr Biggl Biggr big Big "
    "bigg Bigg middle bold hfill nonumber bf it rm vec overrightarrow "
    "underline ensuremath checkmark blacksquare qed square"
)

# Canonical name or mark: other LaTeX commands for it.
ALIASES = _spelled(
    {
        "frac": "dfrac tfrac cfrac sfrac nicefrac",
        "binom": "dbinom tbinom",
        "<=": "le leq leqslant leqq",
        ">=": "ge geq geqslant geqq",
        "!=": "ne neq",
        "<": "lt",
        ">": "gt",
        "~": "approx",
        "*": "cdot times ast cdotp bullet",
        "/": "div",
        "|": "lvert rvert vert mid",
        ",": "land lor vee",
        ":": "colon",
        "\\{": "lbrace",
        "\\}": "rbrace",
        "[": "lbrack",
        "]": "rbrack",
        "(": "langle lparen",
        ")": "rangle rparen",
        "'": "prime",
        "\\\\": "newline cr",
        "circ": "degree",
        "emptyset": "varnothing",
        "csc": "cosec",
        "mod": "pmod bmod",
        "arcsinh": "arsinh asinh",
        "arccosh": "arcosh acosh",
        "arctanh": "artanh atanh",
        "arcsin": "asin",
        "arccos": "acos",
        "arctan": "atan arctg",
        "tan": "tg",
        "cot": "ctg",
        "infty": "infin",
        "dots": "ldots cdots dotsc dotsb dotsm",
        "setminus": "smallsetminus backslash",
        "epsilon": "varepsilon",
        "phi": "varphi",
    }
)

MARKS = {
    "...": "dots",
    "==": "=",
    ":=": "=",
    "=<": "<=",
    "**": "^",
    "\\%": "%",
    "\\$": "$",
    "\\|": "|",
    "\\_": "_",
    "\\#": "#",
    "\\&": "&",
}

# Words that plain text uses for commands and separators.
PLAIN_WORDS = _spelled({"pi": "pi", "mod": "mod", "infty": "infinity inf oo", "theta": "theta", ",": "and or"})

# Words that multiply the number before them.
MULTIPLES = {"dozen": 12, "hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12}

# What a name is said to be: the set that it runs through.
DOMAINS = {
    **dict.fromkeys(("an integer", "any integer", "integer", "an arbitrary integer"), "\\ZZ"),
    **dict.fromkeys(("a constant", "any constant", "an arbitrary constant", "a real constant"), "\\RR"),
    **dict.fromkeys(
        ("any real constant", "a real number", "any real number", "real", "an arbitrary real number"), "\\RR"
    ),
}

# Words after a number that no unit holds: they change what it says.
NO_UNITS = _words(
    "squared cubed minus plus times over divided or more less than least most not greater fewer under above below "
    "between about roughly approximately either tenths hundredths thousandths halves thirds quarters fourths fifths "
    "out except without root by to mod xor power"
)

GREEK = _words(
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau upsilon phi chi psi omega"
)

# Letters that are functions where parentheses follow them, and commands too.
CALLED = _words("f g A B D E F G H I J K L M N P Q R S T U V W X Y Z Gamma zeta arg Re Im det dim ker deg Pr")

# Bases of numerals in words.
BASES = {"two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8", "nine": "9"}

# Whole answers in words: the sign for them.
PHRASES = {
    phrase: sign
    for sign, phrases in {
        r"\mathbb{R}": "all real numbers|all reals|the set of all real numbers|the set of real numbers",
        r"\mathbb{Z}": "all integers|the set of all integers|the set of integers",
        r"(0,\infty)": "all positive real numbers|positive real numbers|all positive reals",
        r"(-\infty,0)": "all negative real numbers|negative real numbers|all negative reals",
        r"[0,\infty)": "all nonnegative real numbers|nonnegative real numbers|all nonnegative reals",
        r"\emptyset": "no solution|no solutions|no real solution|no real solutions|there is no solution|"
        "there are no solutions|there is no real solution|there are no real solutions|empty set|the empty set",
        r"\infty": "infinity|positive infinity|infinite",
        r"-\infty": "negative infinity",
        r"\text{does not exist}": "dne",
        r"\text{infinitely many}": "infinitely many solutions|there are infinitely many solutions",
    }.items()
    for phrase in phrases.split("|")
} | {
    word: str(number)
    for number, word in enumerate(
        [
            "zero",
            "one",
            "two",
            "three",
            "four",
            "five",
            "six",
            "seven",
            "eight",
            "nine",
            "ten",
            "eleven",
            "twelve",
            "thirteen",
            "fourteen",
            "fifteen",
            "sixteen",
            "seventeen",
            "eighteen",
            "nineteen",
            "twenty",
        ]
    )
}

SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱ"
SUBSCRIPTS = "₀₁₂₃₄₅₆₇₈₉ₙₖ"

CHARACTERS = str.maketrans(
    {
        **dict.fromkeys("−–—‒﹣－‐‑", "-"),
        **dict.fromkeys("×·⋅∙∗✕⨯•", r" \cdot "),
        **{c: r"\frac{{{}}}{{{}}}".format(*_compatible(c).split("⁄")) for c in "½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞⅐⅑⅒"},
        **_greek("αβγδεζηθικλμνξπρσςτυφχψωΓΔΘΛΞΠΣΦΨΩ"),
        **dict.fromkeys("÷⁄∕", "/"),
        **dict.fromkeys("≤⩽", "<="),
        **dict.fromkeys("≥⩾", ">="),
        **dict.fromkeys("∅ø", r"\emptyset "),
        **dict.fromkeys("°º", r"^{\circ}"),
        **dict.fromkeys("′‘’", "'"),
        **dict.fromkeys("“”", '"'),
        "₹": r"\text{rupees}",
        "¥": r"\text{yen}",
        "≠": "!=",
        "≈": r"\approx ",
        "∞": r"\infty ",
        "√": r"\sqrt ",
        "∛": r"\sqrt[3] ",
        "∜": r"\sqrt[4] ",
        "∪": r"\cup ",
        "∈": r"\in ",
        "±": r"\pm ",
        "∓": r"\mp ",
        "ℝ": r"\mathbb{R}",
        "€": r"\text{euros}",
        "£": r"\text{pounds}",
        "⟨": r"\langle ",
        "⟩": r"\rangle ",
        "≡": r"\equiv ",
        "→": r"\to ",
        "…": r"\dots ",
    }
)
