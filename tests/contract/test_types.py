"""Our types beside those of the newest `openai` package, key by key: what a release adds is seen here first."""

from collections.abc import Mapping
from typing import Any, Required, Union, get_args, get_origin, get_type_hints

import openai.types
import openai.types.batch_usage
import openai.types.completion_usage
import openai.types.uploads
import pytest
from openai.types import (
    batch_create_params,
    chat,
    file_create_params,
    shared_params,
    upload_complete_params,
    upload_create_params,
)
from openai.types.chat import chat_completion, chat_completion_chunk, completion_create_params
from pydantic import BaseModel

from jobs.contract import batch, completion, file, formats, messages, model, tools, upload
from jobs.contract import chat as chat_body

ANSWERS = [
    (openai.types.Batch, batch.Batch),
    (openai.types.BatchError, batch.Fault),
    (openai.types.BatchRequestCounts, batch.RequestCounts),
    (openai.types.BatchUsage, batch.BatchUsage),
    (openai.types.batch_usage.InputTokensDetails, batch.InputTokensDetails),
    (openai.types.batch_usage.OutputTokensDetails, batch.OutputTokensDetails),
    (openai.types.FileObject, file.File),
    (openai.types.FileDeleted, file.FileDeleted),
    (openai.types.Upload, upload.Upload),
    (openai.types.uploads.UploadPart, upload.UploadPart),
    (openai.types.Model, model.Model),
    (openai.types.CompletionUsage, completion.CompletionUsage),
    (openai.types.completion_usage.PromptTokensDetails, completion.PromptTokensDetails),
    (openai.types.completion_usage.CompletionTokensDetails, completion.CompletionTokensDetails),
    (chat.ChatCompletion, completion.Completion),
    (chat_completion.Choice, completion.Choice),
    (chat.ChatCompletionMessage, completion.AnsweredMessage),
    (chat.ChatCompletionChunk, completion.Chunk),
    (chat_completion_chunk.Choice, completion.ChunkChoice),
    (chat_completion_chunk.ChoiceDelta, completion.Delta),
]
LEFT_OUT = {  # what OpenAI leaves out too where it has no value, and here it has none
    "ChatCompletion": {"metadata", "moderation"},
    "ChatCompletionChunk": {"moderation", "obfuscation"},
    "ChatCompletionMessage": {"audio"},
    "ChoiceDelta": {"audio"},
    "PromptTokensDetails": {"cache_write_tokens", "image_tokens", "text_tokens"},
    "CompletionTokensDetails": {"text_tokens"},
}
THOUGHTS = {"reasoning_content", "reasoning"}  # by DeepSeek and by vLLM, of models that think
ADDED = {
    "AnsweredMessage": THOUGHTS,
    "Delta": THOUGHTS,
    "Batch": {"waiting_for"},
    "Model": {"waiting_for"},
    "Choice": {"content_filter_results"},  # by Azure, of what a filter has withheld
    "ChunkChoice": {"content_filter_results"},
}
PARTS = [  # of a chat completion's body, each named as OpenAI's package names it
    (chat.ChatCompletionContentPartTextParam, messages.TextPart),
    (chat.ChatCompletionContentPartImageParam, messages.ImagePart),
    (chat.chat_completion_content_part_image_param.ImageURL, messages.ImageUrl),
    (chat.chat_completion_content_part_text_param.PromptCacheBreakpoint, messages.CacheBreakpoint),
    (chat.ChatCompletionContentPartInputAudioParam, messages.AudioPart),
    (chat.chat_completion_content_part_input_audio_param.InputAudio, messages.Audio),
    (chat.chat_completion_content_part_param.File, messages.FilePart),
    (chat.chat_completion_content_part_param.FileFile, messages.FileReference),
    (chat.ChatCompletionContentPartRefusalParam, messages.RefusalPart),
    (chat.ChatCompletionMessageFunctionToolCallParam, messages.FunctionCall),
    (chat.chat_completion_message_function_tool_call_param.Function, messages.CalledFunction),
    (chat.ChatCompletionMessageCustomToolCallParam, messages.CustomCall),
    (chat.chat_completion_message_custom_tool_call_param.Custom, messages.CalledCustom),
    (chat.chat_completion_assistant_message_param.Audio, messages.AudioReference),
    (chat.ChatCompletionFunctionToolParam, tools.FunctionTool),
    (shared_params.FunctionDefinition, tools.Function),
    (chat.ChatCompletionCustomToolParam, tools.CustomTool),
    (chat.chat_completion_custom_tool_param.Custom, tools.Custom),
    (chat.chat_completion_custom_tool_param.CustomFormatGrammar, tools.GrammarFormat),
    (chat.chat_completion_custom_tool_param.CustomFormatGrammarGrammar, tools.Grammar),
    (chat.ChatCompletionNamedToolChoiceParam, tools.FunctionChoice),
    (chat.ChatCompletionNamedToolChoiceCustomParam, tools.CustomChoice),
    (chat.ChatCompletionAllowedToolChoiceParam, tools.AllowedToolsChoice),
    (chat.ChatCompletionAllowedToolsParam, tools.AllowedTools),
    (chat.ChatCompletionFunctionCallOptionParam, tools.Named),
    (completion_create_params.PromptCacheOptions, chat_body.PromptCacheOptions),
    (chat.ChatCompletionPredictionContentParam, chat_body.Prediction),
    (chat.ChatCompletionStreamOptionsParam, chat_body.StreamOptions),
    (shared_params.ResponseFormatText, tools.TextFormat),
    (shared_params.ResponseFormatJSONObject, formats.JsonObjectFormat),
    (shared_params.ResponseFormatJSONSchema, formats.JsonSchemaFormat),
    (shared_params.response_format_json_schema.JSONSchema, formats.JsonSchema),
]
MESSAGES = [
    chat.ChatCompletionDeveloperMessageParam,
    chat.ChatCompletionSystemMessageParam,
    chat.ChatCompletionUserMessageParam,
    chat.ChatCompletionAssistantMessageParam,
    chat.ChatCompletionToolMessageParam,
    chat.ChatCompletionFunctionMessageParam,
]
SENT_BACK = {"annotations", *THOUGHTS}
BODIES = [
    (batch_create_params.BatchCreateParams, batch.CreateBatch),
    (upload_create_params.UploadCreateParams, upload.CreateUpload),
    (upload_complete_params.UploadCompleteParams, upload.CompleteUpload),
]
EXTENSIONS = {
    *("top_k", "min_p", "repetition_penalty", "min_tokens", "ignore_eos", "stop_token_ids"),
    *("chat_template_kwargs", "thinking_token_budget", "structured_outputs"),
}


def literals(annotation: Any) -> set[str]:
    """The strings that an annotation allows by name."""
    if get_origin(annotation) is Union or str(get_origin(annotation)) == "<class 'types.UnionType'>":
        return set().union(*(literals(one) for one in get_args(annotation)))
    return {one for one in get_args(annotation) if isinstance(one, str)}


def keys(*params: type) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for one in params:
        found |= get_type_hints(one)
    return found


@pytest.mark.parametrize(("theirs", "ours"), ANSWERS, ids=lambda one: one.__name__)
def test_an_answer_has_every_key_that_the_client_knows_and_no_other(
    theirs: type[BaseModel], ours: type[BaseModel]
) -> None:
    added = ADDED.get(ours.__name__, set())
    assert set(ours.model_fields) - added == set(theirs.model_fields) - LEFT_OUT.get(theirs.__name__, set())


@pytest.mark.parametrize(("theirs", "ours"), ANSWERS, ids=lambda one: one.__name__)
def test_a_key_that_the_client_relies_on_is_never_null(theirs: type[BaseModel], ours: type[BaseModel]) -> None:
    for name, known in theirs.model_fields.items():
        if known.is_required() and type(None) not in get_args(known.annotation):
            assert type(None) not in get_args(ours.model_fields[name].annotation), name


@pytest.mark.parametrize(("theirs", "ours"), ANSWERS, ids=lambda one: one.__name__)
def test_a_word_of_ours_is_one_that_the_client_knows(theirs: type[BaseModel], ours: type[BaseModel]) -> None:
    for name in ours.model_fields.keys() & theirs.model_fields.keys():
        if known := literals(theirs.model_fields[name].annotation):
            assert literals(ours.model_fields[name].annotation) <= known, name


@pytest.mark.parametrize(("theirs", "ours"), BODIES, ids=lambda one: one.__name__)
def test_a_body_takes_every_key_that_the_client_sends(theirs: type, ours: type[BaseModel]) -> None:
    assert set(ours.model_fields) == set(keys(theirs))


def test_the_form_of_a_file_takes_every_key_that_the_client_sends() -> None:
    assert {*upload.CreateFile.model_fields, "file"} == set(keys(file_create_params.FileCreateParams))


@pytest.mark.parametrize(("theirs", "ours"), PARTS, ids=lambda one: one.__name__)
def test_a_part_of_a_body_takes_and_wants_what_the_client_sends(theirs: Any, ours: type[BaseModel]) -> None:
    fields = {field.alias or name: field for name, field in ours.model_fields.items()}
    assert set(fields) == set(keys(theirs))
    hints = get_type_hints(theirs, include_extras=True)
    wanted = {name for name, hint in hints.items() if get_origin(hint) is Required}
    assert {name for name, field in fields.items() if field.is_required()} == wanted
    for name, annotation in keys(theirs).items():
        assert literals(annotation) <= literals(fields[name].annotation), name


def test_a_message_takes_every_key_that_the_client_sends_and_those_of_an_answer() -> None:
    assert set(messages.Message.model_fields) == set(keys(*MESSAGES)) | SENT_BACK
    roles = set().union(*(literals(keys(message)["role"]) for message in MESSAGES))
    assert literals(messages.Message.model_fields["role"].annotation) == roles


def test_a_chat_completion_takes_every_key_that_the_client_sends_and_our_extensions() -> None:
    sent = keys(
        completion_create_params.CompletionCreateParamsStreaming,
        completion_create_params.CompletionCreateParamsNonStreaming,
    )
    fields: Mapping[str, Any] = chat_body.ChatCompletion.model_fields
    assert set(fields) == set(sent) | EXTENSIONS
    for name in ("reasoning_effort", "service_tier", "verbosity", "prompt_cache_retention"):
        assert literals(sent[name]) <= literals(fields[name].annotation), name
