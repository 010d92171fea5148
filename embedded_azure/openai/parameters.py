"""What the body of each operation may have: the parameters of the API, and the service's own extensions."""

_CHAT = """
audio data_sources frequency_penalty function_call functions logit_bias logprobs max_completion_tokens max_tokens
messages metadata modalities model moderation n parallel_tool_calls prediction presence_penalty prompt_cache_key
prompt_cache_options prompt_cache_retention reasoning_effort response_format safety_identifier seed service_tier
stop store stream stream_options temperature tool_choice tools top_logprobs top_p user user_security_context
verbosity web_search_options
"""
_RESPONSES = """
access_programs background background_options context_management conversation image include input instructions
max_output_tokens max_tool_calls metadata model moderation parallel_tool_calls previous_response_id prompt
prompt_cache_key prompt_cache_options prompt_cache_retention reasoning safety_identifier service_tier store stream
stream_options temperature text tool_choice tools top_logprobs top_p truncation user
"""
_COMPLETIONS = """
best_of echo frequency_penalty logit_bias logprobs max_tokens model n presence_penalty prompt seed stop stream
stream_options suffix temperature top_p user
"""
_EMBEDDINGS = "dimensions encoding_format input input_type model user"

CHAT = frozenset(_CHAT.split())
RESPONSES = frozenset(_RESPONSES.split())
COMPLETIONS = frozenset(_COMPLETIONS.split())
EMBEDDINGS = frozenset(_EMBEDDINGS.split())
