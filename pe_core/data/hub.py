"""Data sets of the Hugging Face hub, streamed."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from textwrap import shorten

from pe_core import progress
from pe_core.data.text import OFFLINE, Corpus, Place, Stream
from pe_core.errors import CorpusError


def from_hub(
    name: str,
    repository: str,
    config: str | None = None,
    field: str = "text",
    split: str = "train",
    tokenizer: str | None = None,
    shortest: int = 1,
    licence: str = "see the data set's card",
    heading: str | None = None,
) -> Corpus:
    """A data set of the Hugging Face hub, streamed. No code of the repository is ever run.

    What fails for the moment (too many requests, a server error, a lost connection) is asked for again, later and later,
    from the last document that arrived.

    Args:
        shortest: documents of fewer characters are dropped.
        heading: where rows are lines, a pattern of the rows that begin a document; without it each row is one.
    """

    def after(place: Place | None) -> Stream:
        import datasets

        if silence := no_answer():
            raise hub_error(f"corpus='{name}'", silence) from silence
        if Path(repository).is_dir():  # `load_dataset` would read it and never ask the hub
            raise CorpusError(f"corpus='{name}': means the folder './{repository}' here; name that, or move away")
        at, begun = (place["at"], list(place["begun"])) if place else (None, [])
        waits = iter(RETRY_AFTER)
        while True:
            rows = None
            try:
                rows = datasets.load_dataset(repository, config, split=split, streaming=True)
                if at:
                    rows.load_state_dict(at)
                for row in rows:
                    waits = iter(RETRY_AFTER)
                    text = row.get(field, 0)
                    if text is None:  # a null, as in local parquet files
                        continue
                    if not isinstance(text, str):
                        raise CorpusError(f"corpus='{name}': no text field '{field}' (fields: {', '.join(row)})")
                    whole = text
                    if heading:
                        whole = "".join(begun).strip() if re.match(heading, text) else ""
                        begun = [text] if re.match(heading, text) else [*begun, text]
                    if len(whole) >= shortest:
                        yield whole, lambda rows=rows, begun=begun: {"at": rows.state_dict(), "begun": begun}  # type: ignore[misc]
                if len(last := "".join(begun).strip()) >= shortest:
                    yield last, lambda rows=rows: {"at": rows.state_dict(), "begun": []}  # type: ignore[misc]
                return
            except (CorpusError, GeneratorExit):
                raise
            except Exception as error:  # datasets, huggingface_hub, fsspec and httpx each raise kinds of their own
                wait = next(waits, None) if _passes(error) else None
                if wait is None:
                    raise hub_error(f"corpus='{name}'", error) from error
                at = (rows.state_dict() if rows is not None else None) or at
                progress.say(f"{name}: reading from the hub failed ({_reason(error)}); trying again in {wait:g} s.")
                time.sleep(wait)

    articles = f":{heading}" if heading else ""
    return Corpus(
        name=name,
        about=f"hub data set {repository}{f' ({config})' if config else ''}, streamed",
        licence=licence,
        version=f"{repository}:{config}:{split}:{field}:{shortest}{articles}",
        documents=lambda: (document for document, _ in after(None)),
        finite=False,
        tokenizer=tokenizer,
        after=after,
    )


# Seconds to wait after each failure in a row. The clients have tried several times themselves by then.
RETRY_AFTER = (1.0, 4.0, 16.0, 60.0)


def _passes(error: BaseException | None) -> bool:
    """Whether an error, or one that led to it, is of the kind that goes away by itself."""
    while error is not None:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status is not None:
            return bool(status == 429 or status >= 500)
        if isinstance(error, ConnectionError | TimeoutError):
            return True
        if type(error).__module__.split(".")[0] in (
            "httpx",
            "httpx2",
            "httpcore",
            "httpcore2",
            "requests",
            "urllib3",
            "aiohttp",
        ):
            return True
        error = error.__cause__ or error.__context__
    return False


def pile() -> Corpus:
    """The Pile as the results note used it: documents under 100 characters dropped, Pythia's own tokenizer."""
    return from_hub(
        "pile",
        "monology/pile-uncopyrighted",
        tokenizer="EleutherAI/pythia-70m",
        shortest=100,
        licence="see the data set's card (Gao et al. 2020, arXiv 2101.00027)",
    )


def wikitext_103() -> Corpus:
    """WikiText-103: Wikipedia's good and featured articles, with their own spelling; one document per article."""
    return from_hub(
        "wikitext-103",
        "Salesforce/wikitext",
        "wikitext-103-raw-v1",
        licence="CC BY-SA (Merity et al. 2016, arXiv 1609.07843)",
        heading=r"\s*= [^=]+ =\s*$",  # its rows are lines; deeper headings have more signs
    )


def tinystories() -> Corpus:
    """TinyStories: short stories in the words of small children, written by language models; one document per story."""
    return from_hub("tinystories", "roneneldan/TinyStories", licence="CDLA-Sharing-1.0 (Eldan & Li 2023, arXiv 2305.07759)")


def fineweb_edu() -> Corpus:
    """FineWeb-Edu: web pages that teach, of the sample of 10 billion tokens; one document per page."""
    return from_hub(
        "fineweb-edu",
        "HuggingFaceFW/fineweb-edu",
        "sample-10BT",
        licence="ODC-By 1.0 (Penedo et al. 2024, arXiv 2406.17557)",
    )


def no_answer() -> Exception | None:
    """Why the hub cannot be reached, or `None` when it answers. Its clients try for minutes, or without end."""
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except Exception as error:  # httpx of one version or another, or a proxy's
        return error
    return None


def hub_error(what: str, error: Exception) -> CorpusError:
    """One line for whatever the hub's clients raised, naming what works without a network."""
    return CorpusError(
        f"{what}: the hub did not deliver it ({_reason(error)}); corpora that need no network: {', '.join(OFFLINE)}, "
        "or your own files"
    )


def _reason(error: Exception) -> str:
    return shorten(str(error), 200, placeholder=" …") or type(error).__name__


HUB: dict[str, Callable[[], Corpus]] = {
    "pile": pile,
    "wikitext-103": wikitext_103,
    "tinystories": tinystories,
    "fineweb-edu": fineweb_edu,
}
