"""Files of prompts, conversations and texts, and their tokens (the latter with extra `lm`)."""

import json

import pytest
from helpers.language_models import make_tokenizer, marked, quiet, write_lines

from clbench.core.errors import DataError
from clbench.data.own.instruction_tokens import ItemTokenizer, show_scored, start_tokens
from clbench.data.own.instructions import Conversation, PlainText, Prompted, read_items

PAIR = {"prompt": "a", "response": "b"}
TALK = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]


def test_lines_arrays_and_paragraphs_are_read(tmp_path):
    lines = write_lines(tmp_path / "a.jsonl", [PAIR, {"messages": TALK, "id": 3}])
    array = tmp_path / "a.json"
    array.write_text(json.dumps([PAIR, {"messages": TALK}], indent=1))
    for path, places in ((lines, (1, 2)), (array, (2, 6))):
        assert read_items(path) == [
            Prompted(f"{path}, line {places[0]}", "a", "b"),
            Conversation(f"{path}, line {places[1]}", (("user", "hi"), ("assistant", "yo")))]
    text = tmp_path / "a.txt"
    text.write_text("one\ntwo\n\n\n  \nthree\x0cfour\u2028five\n", encoding="utf-8")  # a form feed ends no line
    assert read_items(text) == [PlainText(f"{text}, line 1", "one\ntwo"),
                                PlainText(f"{text}, line 6", "three\x0cfour\u2028five")]


@pytest.mark.parametrize(("line", "reason"), [
    ("{", "not valid JSON"),
    ('{"prompt": ' + "[" * 100_000, "not valid JSON"),
    ("3", r'expected an object {"prompt": ..., "response": ...}'),
    ('{"prompt": "a"}', "the field 'response' is missing; .*found the fields 'prompt'"),
    ('{"prompt": 1, "response": "b"}', "'prompt' must be text, found 1"),
    ('{"prompt": "a", "response": " "}', "the response is empty"),
    ('{"messages": []}', "'messages' must be a list"),
    ('{"messages": [{"role": "user"}]}', "message 1 must have a 'role' and a 'content'"),
    ('{"messages": [{"role": "bot", "content": "a"}]}', "message 1 has the role 'bot'"),
    ('{"messages": [{"role": "user", "content": "a"}]}', "no message has the role 'assistant'"),
    ('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "tools": [{"x": 1}]}',
     "descriptions of tools are not supported"),
    ('{"messages": [{"role": "assistant", "content": null, "tool_calls": [{"id": 1}]}]}', "message 1 has tool calls"),
    ('{"messages": [{"role": "assistant", "content": ""}]}', "message 1, of the assistant, is empty"),
    (r'{"prompt": "a\ud83d", "response": "b"}', r"not valid Unicode, because '\\ud83d' is one half of a character"),
    (r'{"messages": [{"role": "assistant", "content": "\udc00"}]}', r"not valid Unicode, because '\\udc00'"),
])
def test_an_error_names_file_line_and_reason(tmp_path, line, reason):
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps(PAIR) + "\n\n" + line + "\n")
    with pytest.raises(DataError, match=rf"bad\.jsonl, line 3: .*{reason}"):
        read_items(path)
    if line[-1] not in "{[":
        array = tmp_path / "bad.json"
        array.write_text(f"[{json.dumps(PAIR)},\n\n{line}]")
        with pytest.raises(DataError, match=rf"bad\.json, line 3: .*{reason}"):
            read_items(array)


@pytest.mark.parametrize(("name", "content", "reason"), [
    ("a.csv", b"", "ends in .jsonl, .json or .txt"), ("a.jsonl", b"\n", "it has no items"),
    ("a.json", b"[" + b"1" * 5000 + b"]", "a.json: it is not valid JSON .*limit"),
    ("a.json", b"{}", "expected a JSON array"), ("a.json", b"[\n1,\n", "line 3: it is not valid JSON"),
    ("a.txt", b"\xff", "not UTF-8"), ("a.jsonl", None, "there is no such file")])
def test_a_file_that_cannot_be_read_is_one_line(tmp_path, name, content, reason):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=reason):
        read_items(path)


def tokens(item, length=64, cut=False, **made):
    tokenizer = make_tokenizer(**made)
    return tokenizer, ItemTokenizer(tokenizer, length, cut).tokenize([item])


def scored_text(item, **made):
    """Return all text of an item, and that of its scored tokens."""
    tokenizer, done = tokens(item, **made)
    one, = done.items
    return tokenizer.decode(one.ids), tokenizer.decode([one.ids[i] for i in one.scored])


lm = pytest.mark.extra("lm")


@lm
@pytest.mark.parametrize("bos", [False, True])
def test_the_response_and_the_end_are_scored(bos):
    whole, scored = scored_text(Prompted("x", "ask", "say"), bos=bos)
    assert whole == "<s>" * bos + "asksay<|im_end|>"
    assert scored == "say<|im_end|>"
    assert start_tokens(make_tokenizer(bos=bos)) == ((2,) if bos else ())


@lm
def test_a_text_is_scored_from_its_second_token_or_after_bos():
    assert scored_text(PlainText("x", "text")) == ("text", "ext")
    assert scored_text(PlainText("x", "text"), bos=True) == ("<s>text", "text")
    with pytest.raises(DataError, match="no token can be scored"):
        tokens(PlainText("here", "t"))
    with pytest.raises(DataError, match="here: the prompt is empty"):
        tokens(Prompted("here", "", "a"))


@lm
def test_a_response_that_ends_with_eos_gets_no_second_one():
    assert scored_text(Prompted("x", "a", "b<|im_end|>")) == scored_text(Prompted("x", "a", "b")) == (
        "ab<|im_end|>", "b<|im_end|>")


@lm
def test_the_turns_of_the_assistant_are_scored():
    talk = Conversation("x", (("system", "s"), ("user", "hi"), ("assistant", "yo"), ("user", "more"),
                              ("assistant", "no"), ("user", "unanswered")))
    whole, scored = scored_text(talk, length=400)
    assert whole == ("<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nyo"
                     "<|im_end|>\n<|im_start|>user\nmore<|im_end|>\n<|im_start|>assistant\nno<|im_end|>")
    assert scored == "yo<|im_end|>no<|im_end|>"


@lm
def test_a_turn_of_the_assistant_without_a_prompt_is_not_scored():
    opening = ("assistant", "hello")
    whole, scored = scored_text(Conversation("x", (opening, ("user", "hi"), ("assistant", "yo"))), length=400)
    assert whole.startswith("<|im_start|>assistant\nhello<|im_end|>\n<|im_start|>user\nhi")
    assert scored == "yo<|im_end|>"
    with pytest.raises(DataError, match="here: only a response that follows another message can be scored"):
        tokens(Conversation("here", (opening,)))


@lm
@pytest.mark.parametrize("last", ["", "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}"])
@pytest.mark.parametrize("trim", ["", " | trim"])
def test_a_turn_ends_with_the_first_special_token_after_its_content(last, trim):
    template = ("{% for m in messages %}<|{{ m['role'] }}|>{{ m['content']" + trim + " }}<|end|>\n{% endfor %}"
                "{% if add_generation_prompt %}<|assistant|>{% endif %}" + last)
    talk = Conversation("x", (("user", "hi"), ("assistant", "yo "), ("user", "more"), ("assistant", "no")))
    whole, scored = scored_text(talk, length=400, template=template, extra=("<|end|>", "<|user|>", "<|assistant|>"))
    yo = "yo" if trim else "yo "
    assert whole == f"<|user|>hi<|end|>\n<|assistant|>{yo}<|end|>\n<|user|>more<|end|>\n<|assistant|>no<|end|>"
    assert scored == f"{yo}<|end|>no<|end|>"
    for letters in ("d", "end", "|", "e"):  # which are also in the text after the content
        talk = Conversation("x", (("user", "hi"), ("assistant", letters), ("user", "more"), ("assistant", letters)))
        _, scored = scored_text(talk, length=400, template=template, extra=("<|end|>", "<|user|>", "<|assistant|>"))
        assert scored == f"{letters}<|end|>" * 2


@lm
def test_turns_that_the_template_writes_differently_later_are_not_scored():
    """As in Qwen3's template: assistant turns after the last user message have a block of reasoning."""
    template = ("{% set ns = namespace(last=0) %}{% for m in messages %}{% if m['role'] == 'user' %}"
                "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}{% for m in messages %}<|im_start|>{{ m['role'] "
                "}}\n{% if m['role'] == 'assistant' and loop.index0 > ns.last %}<t></t>{% endif %}{{ m['content'] }}"
                "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
    turns = [("user", "hi"), ("assistant", "yo"), ("user", "more"), ("assistant", "no")]
    whole, scored = scored_text(Conversation("x", (*turns, ("assistant", "end"))), length=400, template=template)
    assert whole == ("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nyo<|im_end|>\n<|im_start|>user\nmore"
                     "<|im_end|>\n<|im_start|>assistant\n<t></t>no<|im_end|>\n<|im_start|>assistant\n<t></t>end<|im_end|>")
    assert scored == "<t></t>no<|im_end|><t></t>end<|im_end|>"
    _, done = tokens(Conversation("x", tuple(turns)), length=400, template=template)
    assert done.notes() == done.notes(400) == (
        "1 turn of the assistant is not scored, because the chat template writes a turn differently once another "
        "message follows",)


@lm
def test_a_template_that_writes_the_date_writes_the_same_every_day():
    template = ("{% if strftime_now is defined %}{% set today = strftime_now('%d %b %Y') %}{% endif %}{{ today }}"
                "{% for m in messages %}{{ m['content'] }}{% endfor %}")
    whole, _ = scored_text(Conversation("x", (("user", "hi"), ("assistant", "yo"))), template=template)
    assert whole.startswith("26 Jul 2024hi")


@lm
def test_a_template_that_writes_bos_gets_no_second_one():
    template = "<s>{% for m in messages %}[{{ m['content'] }}]{% if m['role'] == 'assistant' %}<|im_end|>{% endif %}" \
               "{% endfor %}"
    talk = Conversation("x", (("user", "hi"), ("assistant", "yo")))
    assert scored_text(talk, template=template, bos=True) == ("<s>[hi][yo]<|im_end|>", "[yo]<|im_end|>")


@lm
@pytest.mark.parametrize(("template", "reason"), [
    ("{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}", "does not continue message 2"),
    ("{{ raise_exception('no system message') }}", "does not take the first 1 messages: no system message"),
    (None, r"has no chat template; use prompt and response, or a tokenizer with a template \(option tokenizer")])
def test_a_template_that_hides_the_turns_is_refused(template, reason):
    with pytest.raises(DataError, match=f"here: .*{reason}"):
        tokens(Conversation("here", (("user", "hi"), ("assistant", "yo"))), template=template)


def make_sentencepiece():
    """Return a tokenizer that adds a space at the start of a text, as those of Llama 2 and TinyLlama do."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors

    transformers, _ = quiet()
    names = ["<unk>", "<s>", "</s>", "\u2581", *"CPais:", "\u2581P", *(f"<0x{byte:02X}>" for byte in range(256))]
    made = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, [("\u2581", "P")], unk_token="<unk>",
                                fuse_unk=True, byte_fallback=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    made.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
                                      decoders.Strip(" ", 1, 0)])
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>",
                                                unk_token="<unk>")


@lm
@pytest.mark.parametrize(("prompt", "response", "pieces"), [
    ("Ca:", "Pa", ["P", "a"]), ("Ca: ", "Pa", ["P", "a"]), ("Ca:", " Pa", [" P", "a"]),
    ("Ca:", "\nP", ["\n", "P"]), ("Ca:", "\u6771i", ["\u6771", "i"])])
def test_no_space_comes_between_prompt_and_response(prompt, response, pieces):
    tokenizer = make_sentencepiece()
    item, = ItemTokenizer(tokenizer, 64).tokenize([Prompted("x", prompt, response)]).items
    assert tokenizer.decode(item.ids, skip_special_tokens=True) == prompt + response
    assert show_scored(item, tokenizer) == f"<s> {prompt}" + marked(*pieces, "</s>")


@lm
def test_tokens_of_one_character_are_shown_together():
    assert not ItemTokenizer(make_tokenizer(), 64).adds_space
    tokenizer, done = tokens(Prompted("x", "\xfc ", "\u6771a"))
    assert show_scored(done.items[0], tokenizer) == "\xfc " + marked("\u6771", "a", "<|im_end|>")


@lm
def test_a_prompt_that_is_too_long_loses_its_start_and_is_counted():
    tokenizer, done = tokens(Prompted("x", "0123456789", "abc"), length=8, bos=True)
    assert tokenizer.decode(done.items[0].ids) == "<s>789abc<|im_end|>"
    assert tokenizer.decode([done.items[0].ids[i] for i in done.items[0].scored]) == "abc<|im_end|>"
    assert (done.cut_prompts, done.cut_responses) == (1, 0)


@lm
def test_a_response_that_is_too_long_is_an_error_unless_it_may_be_cut():
    item = Prompted("here", "0123456789", "abcdefgh")
    with pytest.raises(DataError, match="here: its 19 tokens do not fit into 8, even without its prompt"):
        tokens(item, length=8)
    tokenizer, done = tokens(item, length=8, cut=True)
    assert tokenizer.decode(done.items[0].ids) == "6789abcd"
    assert tokenizer.decode([done.items[0].ids[i] for i in done.items[0].scored]) == "abcd"
    assert (done.cut_prompts, done.cut_responses) == (1, 1)  # both were cut
    assert done.notes() == ("1 prompt was cut", "1 response was cut")
    assert done.notes(9) == ("1 prompt was cut to 9 tokens", "1 response was cut to 9 tokens")
    _, done = tokens(Prompted("x", "0123", "abcdefgh"), length=8, cut=True)
    assert (done.cut_prompts, done.cut_responses) == (0, 1)


@lm
def test_a_text_that_is_too_long_loses_its_end():
    tokenizer, done = tokens(PlainText("x", "0123456789"), length=4)
    assert (tokenizer.decode(done.items[0].ids), done.items[0].scored, done.cut_texts) == ("0123", (1, 2, 3), 1)


@lm
def test_scored_tokens_are_marked():
    tokenizer, done = tokens(Prompted("x", "ask", "ab"))
    assert show_scored(done.items[0], tokenizer) == "ask" + marked("a", "b", "<|im_end|>")
