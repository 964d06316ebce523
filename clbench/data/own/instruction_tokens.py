"""Turn items of `instructions` into tokens of a model, and mark the tokens that are scored.

Prompt and response are tokenized separately, so the response is scored exactly as a model would have to generate it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import date
from functools import cached_property
from typing import Any

from clbench.core.errors import DataError, SpecError, message_of
from clbench.data.own.instructions import ASSISTANT, Conversation, Item, PlainText, Prompted
from clbench.models.scoring import TokenItem

LENGTH = 1024  # largest number of tokens of an item, if the user does not set it
BEFORE = "\n"  # a text before a response, so that the tokenizer does not add a space to it
CONTENT = "clbench-content"  # the content of a turn when only the text that a chat template writes after it is needed
TODAY = date(2024, 7, 26)  # for chat templates that write today's date; that of Llama 3.1 has this default
# It hides the function of this name, which transformers gives to templates.
DATE_MACRO = ("{% macro strftime_now(format) %}{{ format" + "".join(
    f" | replace('%{code}', '{TODAY.strftime(f'%{code}')}')" for code in "aAbBdmYyjHMSIp") + " }}{% endmacro %}\n")
INCOMPLETE = "\N{REPLACEMENT CHARACTER}"  # what tokens of a part of a character are decoded to


@dataclass(frozen=True)
class Tokenized:
    """The items of a file as tokens, and how many of them were cut to fit."""

    items: tuple[TokenItem, ...]
    cut_prompts: int = 0
    cut_responses: int = 0
    cut_texts: int = 0
    unscored_turns: int = 0
    copies: int = 0

    def without_copies(self) -> Tokenized:
        """Return each item once; copies of an item are no further evidence."""
        items = tuple(dict.fromkeys(self.items))
        return replace(self, items=items, copies=len(self.items) - len(items))

    def notes(self, length: int | None = None) -> tuple[str, ...]:
        """Describe what was cut (with `length`, to how many tokens) or left out, and what is not scored."""
        cut = "cut" if length is None else f"cut to {length} tokens"
        counts = {"prompt": self.cut_prompts, "response": self.cut_responses, "text": self.cut_texts}
        cuts = [f"{count} {kind}{'s were' if count > 1 else ' was'} {cut}" for kind, count in counts.items() if count]
        turns = f"{self.unscored_turns} turn{'s' * (self.unscored_turns > 1)} of the assistant"
        if self.copies:
            cuts.append(f"{self.copies} {'copies of items are' if self.copies > 1 else 'copy of an item is'} left out")
        return (*cuts, *([f"{turns} {'are' if self.unscored_turns > 1 else 'is'} not scored, because the chat template "
                          "writes a turn differently once another message follows"] if self.unscored_turns else []))

    @property
    def have_responses(self) -> bool:
        """Whether all items have a response, which an exact match requires."""
        return all(item.has_response for item in self.items)


class ItemTokenizer:
    """Turns items into tokens.

    Args:
        tokenizer: a tokenizer of transformers.
        length: largest number of tokens of an item.
        cut_responses: whether a response that does not fit is cut; otherwise it is an error.
        vocabulary_size: the number of tokens of the model; None if it is not known.
    """

    def __init__(self, tokenizer: Any, length: int, cut_responses: bool = False,
                 vocabulary_size: int | None = None) -> None:
        """Find the tokens that the tokenizer puts at the start of a text, and whether it adds a space there."""
        self.tokenizer, self.length, self.cut_responses = tokenizer, length, cut_responses
        self.vocabulary_size = vocabulary_size
        self.start, self.special = start_tokens(tokenizer), special_tokens(tokenizer)
        before = self._to_tokens(BEFORE)
        self.adds_space = self._to_tokens(BEFORE + "a") not in (self._to_tokens("a"), before + self._to_tokens("a"))

    def tokenize(self, items: Iterable[Item]) -> Tokenized:
        """Return items as tokens that fit.

        Raises:
            DataError: an item has nothing to score, a response does not fit, the chat template does not render it, or
                the model does not have one of its tokens.
        """
        token_items: list[TokenItem] = []
        prompt_cuts = response_cuts = text_cuts = unscored_turns = 0
        for item in items:
            ids, scored, unscored = self._tokens(item)
            unscored_turns += unscored
            if not scored:
                raise DataError(f"{item.place}: no token can be scored, because nothing comes before the first one")
            if self.vocabulary_size is not None and max(ids) >= self.vocabulary_size:
                raise DataError(f"{item.place}: the tokenizer made the token ID {max(ids)}, and the model has only "
                                f"{self.vocabulary_size} tokens; use the tokenizer that the model was trained with")
            if len(ids) > self.length and isinstance(item, PlainText):
                text_cuts += 1
                ids, scored = ids[:self.length], [i for i in scored if i < self.length]
            elif len(ids) > self.length:
                ids, scored, prompt_was_cut, response_was_cut = self._cut(ids, scored, item.place)
                prompt_cuts, response_cuts = prompt_cuts + prompt_was_cut, response_cuts + response_was_cut
            token_items.append(TokenItem(tuple(ids), tuple(scored), not isinstance(item, PlainText)))
        return Tokenized(tuple(token_items), prompt_cuts, response_cuts, text_cuts, unscored_turns)

    def _tokens(self, item: Item) -> tuple[list[int], list[int], int]:
        """Return the tokens of an item, the positions of those that are scored, and how many turns are not scored."""
        if isinstance(item, Prompted):
            prompt = [*self.start, *self._to_tokens(item.prompt)]
            if not prompt:
                raise DataError(f"{item.place}: the prompt is empty, and this tokenizer puts no token at the start, so "
                                "the first token of the response has nothing before it")
            response, end = self._response(item), self._end(item)
            ids = [*prompt, *response, *([end] if response[-1:] != [end] else [])]
            return ids, list(range(len(prompt), len(ids))), 0
        if isinstance(item, PlainText):
            ids = [*self.start, *self._to_tokens(item.text)]
            return ids, list(range(max(1, len(self.start)), len(ids))), 0
        return self._conversation(item)

    def _conversation(self, item: Conversation) -> tuple[list[int], list[int], int]:
        """Return the tokens of a conversation up to the end of the assistant's last turn.

        A turn consists of the tokens that follow the earlier messages, which are rendered with the generation prompt.
        If the first message is the assistant's, it is not scored, because there is no message that it responds to.

        Some chat templates write a turn differently once other messages follow: that of Qwen3 removes its reasoning.
        The model never generates these tokens, so they are not scored; the third value is the number of such turns.
        """
        scored: list[int] = []
        ids: list[int] = []
        turns = unscored = 0
        for number, (role, _) in enumerate(item.messages):
            if role != ASSISTANT or number == 0:
                continue
            prompt, text = self._to_tokens(self._render(item, number, True)), self._render(item, number + 1, False)
            extended = self._to_tokens(text)
            if extended[:len(prompt)] != prompt:
                raise DataError(f"{item.place}: the chat template does not continue message {number + 1} where the "
                                "prompt before it ends, so the assistant's tokens are not known; use prompt and "
                                "response instead")
            if prompt[:len(ids)] != ids:
                scored, unscored = [], turns
            turns += 1
            end = self._turn_end(extended, text, self._closing(item, number), len(prompt))
            scored += range(len(prompt), end)
            ids = extended[:end]
        if ASSISTANT not in (role for role, _ in item.messages[1:]):
            raise DataError(f"{item.place}: only a response that follows another message can be scored, and there is "
                            "none; add the message that the assistant responds to")
        return ids, scored, unscored

    def _closing(self, item: Conversation, number: int) -> str:
        """Return the text that the chat template writes after the content of the assistant's turn `number`.

        The turn is rendered with another content, because a short one, such as the letter d, can also be in the text
        after it, as in <end_of_turn>.
        """
        messages = (*item.messages[:number], (ASSISTANT, CONTENT))
        return self._render(replace(item, messages=messages), number + 1, False).rpartition(CONTENT)[2]

    def _turn_end(self, ids: list[int], text: str, closing: str, begin: int) -> int:
        """Return the position after the token that ends a turn; tokens after it are never generated.

        It is the first special token after the content, such as EOS or <end_of_turn>. If no special token follows the
        content, it is the last EOS of the turn, or else the turn's last token.

        Args:
            ids: the tokens of all messages up to this turn.
            text: their text.
            closing: the text after the content of the turn.
            begin: the position of the turn's first token.
        """
        after = self._to_tokens(closing) if text.endswith(closing) else []
        for i, token in enumerate(after):
            if token in self.special and ids[len(ids) - len(after) + i:] == after[i:]:
                return len(ids) - len(after) + i + 1
        ends = [i for i in range(begin, len(ids)) if ids[i] == self.tokenizer.eos_token_id]
        return ends[-1] + 1 if ends else len(ids)

    @cached_property
    def template(self) -> str:
        """Return the chat template; if it writes today's date, it gets a fixed one, so that tokens stay the same."""
        template: str = self.tokenizer.get_chat_template()
        return DATE_MACRO * ("strftime_now" in template) + template

    def _render(self, item: Conversation, count: int, prompt: bool) -> str:
        """Return the text of the first `count` messages; the chat template writes all special tokens itself."""
        if self.tokenizer.chat_template is None:
            raise DataError(f"{item.place}: it has messages, and the tokenizer has no chat template; use prompt "
                            "and response, or a tokenizer with a template (option tokenizer of the benchmark in "
                            "clbench run, --chat-template FILE in clbench forget)")
        messages = [{"role": role, "content": content} for role, content in item.messages[:count]]
        try:
            return str(self.tokenizer.apply_chat_template(messages, chat_template=self.template, tokenize=False,
                                                          add_generation_prompt=prompt))
        except Exception as error:  # a template is code of a model's author, which may raise any error
            reason = message_of(error) or type(error).__name__
            raise DataError(f"{item.place}: the chat template does not take the first {count} messages: "
                            f"{reason}") from None

    def _cut(self, ids: list[int], scored: list[int], place: str) -> tuple[list[int], list[int], bool, bool]:
        """Return tokens that fit, the scored positions, and whether the prompt and the response were cut.

        The start of the prompt is cut first, then the end of the response.
        """
        start = len(self.start) if ids[:len(self.start)] == list(self.start) else 0
        excess, first_scored = len(ids) - self.length, scored[0]
        if excess <= first_scored - max(1, start):
            return ids[:start] + ids[start + excess:], [i - excess for i in scored], True, False
        if not self.cut_responses:
            raise DataError(f"{place}: its {len(ids)} tokens do not fit into {self.length}, even without its prompt; "
                            "raise the length, shorten the response, or allow cut responses (length= and "
                            "cut_responses=true of a benchmark, --length and --allow-cut-responses of clbench forget)")
        dropped = max(0, first_scored - max(1, self.length // 2))
        ids = ids[:start] + ids[start + dropped:]
        positions = [i - dropped for i in scored if i - dropped < self.length]
        return ids[:self.length], positions, dropped > 0, True

    def _to_tokens(self, text: str) -> list[int]:
        """Return the tokens of a text without special tokens."""
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _response(self, item: Prompted) -> list[int]:
        """Return the tokens of a response, without the space that SentencePiece adds at the start of a text."""
        if not self.adds_space:
            return self._to_tokens(item.response)
        before, ids = self._to_tokens(BEFORE), self._to_tokens(BEFORE + item.response)
        if ids[:len(before)] != before:
            raise DataError(f"{item.place}: the tokenizer joins the start of the response with a line break before it, "
                            "so the response's own tokens are not known; let it begin with another character")
        return ids[len(before):]

    def _end(self, item: Item) -> int:
        """Return the token that ends a response."""
        if self.tokenizer.eos_token_id is None:
            raise DataError(f"{item.place}: the tokenizer has no EOS, with which a response ends")
        return int(self.tokenizer.eos_token_id)


def fitting_length(wanted: int | None, most: int | None, model: str) -> int:
    """Return the largest number of tokens of an item.

    Args:
        wanted: the number that the user sets; None if the user does not set it.
        most: the largest number that the model takes; None if it is not known.
        model: the name of the model, for the error.

    Raises:
        SpecError: the user wants more tokens than the model takes.
    """
    if wanted is not None and most is not None and wanted > most:
        raise SpecError(f"length {wanted}: {model} takes at most {most} tokens")
    return wanted or min(most or LENGTH, LENGTH)


def special_tokens(tokenizer: Any) -> set[int]:
    """Return the special tokens of a tokenizer, such as EOS and those of a chat template, without the unknown token."""
    added = {token for token, info in tokenizer.added_tokens_decoder.items() if info.special}
    return (added | set(tokenizer.all_special_ids)) - {tokenizer.unk_token_id}


def start_tokens(tokenizer: Any) -> tuple[int, ...]:
    """Return the special tokens that a tokenizer puts at the start of a text: usually BOS, or none."""
    bare_ids = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    full_ids = list(tokenizer("a", add_special_tokens=True)["input_ids"])
    for position in range(len(full_ids) - len(bare_ids) + 1):
        if full_ids[position:position + len(bare_ids)] == bare_ids:
            return tuple(full_ids[:position])
    return ()


def show_scored(item: TokenItem, tokenizer: Any) -> str:
    """Return an item as text in which the scored tokens are in angle quotation marks.

    There is one pair of marks for each token, or for the tokens of one character. Tokens are decoded together with the
    tokens before them, because some tokenizers drop the space of the first token.
    """
    scored = set(item.scored)
    text = shown = ""
    for i in range(len(item.ids)):
        decoded = tokenizer.decode(item.ids[:i + 1], clean_up_tokenization_spaces=False)
        is_end = i + 1 == len(item.ids) or (i in scored) != (i + 1 in scored)
        if decoded.endswith(INCOMPLETE) and not is_end:
            continue
        piece = decoded[len(text):]
        shown += (f"\N{SINGLE LEFT-POINTING ANGLE QUOTATION MARK}{piece}"
                  f"\N{SINGLE RIGHT-POINTING ANGLE QUOTATION MARK}" if i in scored else piece)
        text = decoded
    return shown
