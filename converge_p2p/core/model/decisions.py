"""Every kind of decision under one name: `from converge_p2p import decisions`.

Knows: where each kind lives. Must not know: anything else.
Source: the concepts page (table of decisions).
"""

from __future__ import annotations

from converge_p2p.core.model.coordination_decision import (
    ActFor as ActFor,
    CloseAuction as CloseAuction,
    ClosePoll as ClosePoll,
    OpenAuction as OpenAuction,
    OpenPoll as OpenPoll,
    SettleAuction as SettleAuction,
)
from converge_p2p.core.model.decision import (
    AcceptProposal as AcceptProposal,
    CancelTask as CancelTask,
    ClaimTask as ClaimTask,
    CreatePool as CreatePool,
    Decision as Decision,
    Delegate as Delegate,
    InvokeTool as InvokeTool,
    JoinPool as JoinPool,
    LeavePool as LeavePool,
    Propose as Propose,
    RejectProposal as RejectProposal,
    ReleaseTask as ReleaseTask,
    ReportTask as ReportTask,
    RevokeDelegation as RevokeDelegation,
    SendMessage as SendMessage,
    SubmitBid as SubmitBid,
    SubmitTask as SubmitTask,
    Vote as Vote,
)
