"""An agent that a language model decides for.

Knows: what happened since the last turn, and how to ask again when an answer cannot be used. Must not know: any
provider, or how decisions are carried out.
Source: `docs/llm.md`. The model is asked only when something is new to it: every question costs.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import aclosing

from converge_p2p.core import limits
from converge_p2p.core.errors import LocalError
from converge_p2p.core.model.capability import Capability
from converge_p2p.core.model.decision import ClaimTask, Decision, InvokeTool, ReleaseTask, ReportTask, SendMessage
from converge_p2p.core.model.message import Message
from converge_p2p.core.model.task import TaskView
from converge_p2p.core.model.topic import Topic
from converge_p2p.core.types import AgentId, PoolId
from converge_p2p.extensions.llm.answer import BadAnswer, Grammar
from converge_p2p.extensions.llm.chat import ChatMessage, ChatProvider, LLMError, bounded, with_retries
from converge_p2p.extensions.llm.prompt import Addresses, Memory, news, system_prompt
from converge_p2p.runtime.agent import Agent
from converge_p2p.runtime.budget import RequestBudget
from converge_p2p.runtime.tools import ToolRegistry

_logger = logging.getLogger(__name__)

DEFAULT_ACTIONS: frozenset[type[Decision]] = frozenset({SendMessage, ClaimTask, ReportTask, ReleaseTask, InvokeTool})


class LLMAgent(Agent):
    """Asks a model what to do, and turns its answer into decisions.

    Host it with a `SafetyPolicy` as any agent: what the model may answer is bounded here, what is carried out there.

    Attributes:
        questions, repairs: how often the model was asked, and asked again because its answer could not be used.
    """

    def __init__(
        self,
        me: AgentId,
        provider: ChatProvider,
        instructions: str,
        *,
        capabilities: Iterable[Capability] = (),
        topics: Iterable[Topic] = (),
        discoverable: bool = False,
        actions: Collection[type[Decision]] = DEFAULT_ACTIONS,
        tools: ToolRegistry | None = None,
        contacts: Iterable[AgentId] = (),
        pools: Iterable[PoolId] = (),
        memory_turns: int = 8,
        max_tokens: int = 1024,
        budget: RequestBudget | None = None,
        on_text: Callable[[str], None] | None = None,
    ) -> None:
        """Set it up; nothing is asked.

        Args:
            me: the node that hosts it: the sender of what it says.
            provider: the model.
            instructions: what it is to do, from the application.
            capabilities, topics, discoverable: see `Agent`.
            actions: kinds of decisions that it may take, of `answer.ACTIONS`.
            tools: those it is told of; the same registry is given to `Node.host`.
            contacts: whom it may write to without having heard from them.
            pools: where it may submit tasks, if it may.
            memory_turns: how many turns it remembers, 0 to `limits.LLM_MEMORY_TURNS_MAX`.
            max_tokens: of one answer.
            budget: of questions; None: no bound.
            on_text: called with each piece of an answer as it comes; with it, answers are streamed.

        Raises:
            LocalError: an argument out of its range.
        """
        super().__init__(capabilities=capabilities, topics=topics, discoverable=discoverable)
        if not 0 <= memory_turns <= limits.LLM_MEMORY_TURNS_MAX:
            raise LocalError(f"memory_turns is {memory_turns}; expected 0 to {limits.LLM_MEMORY_TURNS_MAX}")
        if max_tokens < 1:
            raise LocalError(f"max_tokens is {max_tokens}; expected 1 or more")
        self._me = me
        self._provider = provider
        self._instructions = instructions
        self._grammar = Grammar(actions)
        self._tools = tools
        self._addresses = Addresses(contacts, pools, self.topics)
        self._memory = Memory(memory_turns)
        self._max_tokens = max_tokens
        self._budget = RequestBudget(None) if budget is None else budget
        self._on_text = on_text
        # messages of a turn that failed come with the next one; without room the oldest is lost
        self._unanswered: deque[Message] = deque(maxlen=limits.LLM_MESSAGES_KEPT_MAX)
        self._shown: frozenset[object] = frozenset()
        self.questions = 0
        self.repairs = 0

    async def decide(self, messages: Sequence[Message], tasks: Sequence[TaskView]) -> list[Decision]:
        """See `Agent`.

        Raises:
            LLMError: the model gave no answer that can be used; the runtime then waits, and asks again.
            LimitExceeded: the budget of questions is spent.
        """
        self._unanswered.extend(message for message in messages if message.sender != self._me)
        shown = frozenset((view.id, view.state, view.epoch, view.round) for view in tasks)
        if not self._unanswered and not self.tool_results and shown <= self._shown:
            self._shown = shown
            return []
        names = self._addresses.names(tasks)
        told = news(tuple(self._unanswered), names, self._addresses, self.tool_results)
        # those who wrote have names by now
        names.people.update(self._addresses.names(()).people)
        system = system_prompt(self._instructions, self._grammar, self._tools.specs() if self._tools else ())
        conversation = [ChatMessage("system", system), *self._memory.messages(), ChatMessage("user", told)]
        problem = ""
        for attempt in range(limits.LLM_REPAIRS_MAX + 1):
            text = await self._ask(conversation)
            try:
                decisions = self._grammar.decisions(text, names, self._me)
            except BadAnswer as error:
                problem = str(error)
                _logger.info("an answer of the model cannot be used: %s", error)
                self.repairs += attempt < limits.LLM_REPAIRS_MAX
                repair = f"That cannot be used: {error}. Answer again, with the JSON object alone."
                said = ChatMessage("assistant", text[: limits.LLM_ITEM_CHARS_MAX] or "(nothing)")
                conversation += [said, ChatMessage("user", repair)]
                continue
            self._memory.note(told, text)
            self._unanswered.clear()
            self._shown = shown
            return decisions
        # what makes the model talk nonsense must not come again and again, and keep everything else waiting
        self._unanswered.clear()
        self._shown = shown
        raise LLMError(f"after {limits.LLM_REPAIRS_MAX + 1} answers none can be used: {problem}")

    async def _ask(self, conversation: Sequence[ChatMessage]) -> str:
        async def once() -> str:
            self._budget.spend()
            self.questions += 1
            if self._on_text is None:
                return (await self._provider.chat(conversation, max_tokens=self._max_tokens)).text
            said = ""
            async with aclosing(self._provider.chat_stream(conversation, max_tokens=self._max_tokens)) as pieces:
                async for piece in pieces:
                    said = bounded(said + piece)
                    self._on_text(piece)
            return said

        return await with_retries(once)
