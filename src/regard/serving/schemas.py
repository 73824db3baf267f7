"""The bodies of requests and answers."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, FailFast, Field

from regard.pipelines.completer import LENGTH
from regard.web.schemas import AnswerBody, RequestBody

MOST_HYPOTHESES = 32
MOST_TOKENS = 1000  # of a completion


class First(FailFast):
    """Names only the first wrong element of a list: a body of a megabyte may have half a million."""

    __hash__ = object.__hash__  # which a union of types needs


Texts = Annotated[list[str], First()]
Beam = Annotated[int, Field(ge=1, le=MOST_HYPOTHESES)]


class TranslateRequest(RequestBody):
    texts: Texts = Field(min_length=1)
    """What to translate; a text of several sentences is translated sentence by sentence."""
    model: str | None = None
    """The name of a loaded translator; the first one by default."""
    beam: Beam | None = None
    """Hypotheses kept per sentence; the model's own number by default."""
    n_best: Beam = 1
    """Outputs returned per text; all but the best as alternatives."""
    alignment: bool = False
    """Return which source word each output word attends to most."""
    glossary: dict[str, str] | None = None
    """{a term of the source language: what stands for it in the output of a text that has the term}."""
    prefix: str = Field("", max_length=1000)
    """What every output begins with; a text is then translated as one, however many sentences it has."""
    force: list[str] = Field([], max_length=64)
    """Words or phrases that every output must contain; a text is then translated as one, whatever its sentences."""
    forbid: list[str] = Field([], max_length=64)
    """Words or phrases that no output has."""
    protect: bool = False
    """Addresses, placeholders, markup and numbers survive."""
    stream: bool = False
    """Answer with server-sent events: one for each finished sentence, then the whole answer."""


class WordAnswer(AnswerBody):
    text: str
    log_prob: float | None
    """The sum of its tokens' log-probabilities, in nats."""
    entropy: float | None
    """The mean entropy of the distributions that its tokens were taken from, in nats."""


class AlternativeAnswer(AnswerBody):
    text: str
    score: float | None


class AlignmentAnswer(AnswerBody):
    source: list[str]
    target: list[str]
    pairs: list[tuple[int, int]]
    """[output word, source word], counted from 0."""


class TranslationAnswer(AnswerBody):
    text: str
    score: float | None
    """The number that ranked the output."""
    log_prob: float | None
    words: list[WordAnswer]
    alternatives: list[AlternativeAnswer]
    alignment: AlignmentAnswer | None = None
    """Where it was asked for."""


class TranslateAnswer(AnswerBody):
    model: str
    translations: list[TranslationAnswer]


class ScoreRequest(RequestBody):
    sources: Texts = Field(min_length=1)
    targets: Texts = Field(min_length=1)
    """A translation of each source."""
    model: str | None = None
    """The name of a loaded translator; the first one by default."""


class TokenAnswer(AnswerBody):
    text: str
    log_prob: float | None


class ScoredAnswer(AnswerBody):
    log_prob: float | None
    """The sum over the tokens, in nats; the end token is counted."""
    tokens: list[TokenAnswer]


class ScoreAnswer(AnswerBody):
    model: str
    scores: list[ScoredAnswer]


class CompleteRequest(RequestBody):
    texts: Texts = Field(min_length=1)
    """Beginnings."""
    model: str | None = None
    """The name of a loaded language model; the first one by default."""
    length: int = Field(LENGTH, ge=0, le=MOST_TOKENS)
    """Tokens added at most."""
    stop: list[str] = Field([], max_length=16)
    """Strings that end the text and are left out of it."""
    temperature: float | None = Field(None, ge=0)
    """Logits are divided by it; 0 takes the most probable token. Default: 1."""
    top_k: int | None = Field(None, ge=1)
    """Draw from the k most probable tokens."""
    top_p: float | None = Field(None, gt=0, le=1)
    """Draw from the most probable tokens that together have this probability."""
    min_p: float | None = Field(None, ge=0, le=1)
    """Draw from tokens with at least this share of the greatest probability."""
    repetition: float | None = Field(None, gt=0)
    """Above 1: tokens that occurred before become less probable."""
    no_repeat: int | None = Field(None, ge=0)
    """No n-gram of this length occurs twice."""
    seed: int | None = Field(None, ge=0, lt=2**63)
    """The same seed draws the same texts."""
    beam: Beam | None = None
    """Search instead of drawing."""
    n_best: Beam | None = None
    """Outputs that a search returns."""
    stream: bool = False
    """Answer with server-sent events: one for each piece of text, then the whole answer; for one text."""


class CompletionAnswer(AnswerBody):
    text: str
    """The added text."""
    score: float | None = None
    log_prob: float | None = None
    alternatives: list[AlternativeAnswer] = Field([])


class CompleteAnswer(AnswerBody):
    model: str
    completions: list[CompletionAnswer]


class MediaQuery(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    model: str | None = None
    """The name of a loaded model of this task; the first one by default."""
    beam: Beam | None = None
    """Hypotheses kept; the model's own number by default."""
    n_best: Beam = 1
    """Outputs returned; all but the best as alternatives."""


class PieceAnswer(AnswerBody):
    start: float
    """Seconds before it."""
    text: str


class MediaAnswer(AnswerBody):
    model: str
    text: str
    score: float | None
    log_prob: float | None
    alternatives: list[AlternativeAnswer]
    pieces: list[PieceAnswer] = Field([])
    """The segments of a long recording."""


class HealthAnswer(AnswerBody):
    status: str
    models: list[str]


class KeyFields(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)

    api_key: str | None = None
    """The server's token, where it has one and no header brings it."""


class LibreTranslateRequest(KeyFields):
    q: str | Texts
    """A text, or a list of them."""
    source: str
    """The code of its language, or "auto"."""
    target: str
    format: str = "text"
    """"text" or "html"; the tags of HTML stay."""
    alternatives: int = Field(0, ge=0, lt=MOST_HYPOTHESES)
    """Further translations of each text."""


class DetectedAnswer(AnswerBody):
    language: str
    confidence: float
    """0 … 100."""


class LibreTranslateAnswer(AnswerBody):
    translatedText: str | list[str]
    alternatives: list[str] | list[list[str]] | None = None
    """Where they were asked for."""
    detectedLanguage: DetectedAnswer | list[DetectedAnswer] | None = None
    """Where the source is "auto"."""


class DetectRequest(KeyFields):
    q: str


class DetectAnswer(AnswerBody):
    """A list of these."""

    language: str
    confidence: float


class LanguageAnswer(AnswerBody):
    """A list of these."""

    code: str
    name: str
    targets: list[str]
