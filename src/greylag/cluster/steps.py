"""The steps on an environment's way to ready, in order, as the activation log tells them."""

from greylag.domain.lifecycle import Step

PROCESS_STARTED = Step("process_started", "The environment's process has started.")
API_ANSWERS = Step("api_answers", "The agent's API answers.")
AGENT_READY = Step("agent_ready", "The agent is ready.")
