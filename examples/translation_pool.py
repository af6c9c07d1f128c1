"""A pool whose members bid for translations: the electors give each task to the lowest bid among rival claims."""

import trio

from converge_p2p import Agent, AssignmentRule, Node, OutcomeKind, PoolPolicy, Task, decisions

LOCAL = ["/ip4/127.0.0.1/tcp/0"]
WORDS = {"hi": "salut", "thanks": "merci", "goodbye": "au revoir"}


class Translator(Agent):
    """Bids its price, and works if it is granted the task."""

    def __init__(self, name, price):
        super().__init__(name=name)
        self.price = price

    def decide(self, messages, tasks):
        decided = [decisions.ClaimTask(task.pool_id, task.id, bid=self.price) for task in tasks if task.claimable]
        for outcome in self.outcomes:
            if outcome.kind is OutcomeKind.GRANTED:
                task = outcome.task
                answer = {"text": WORDS[task.inputs["text"]], "by": self.name}
                decided.append(decisions.ReportTask(task.pool_id, task.id, answer))
        return decided


async def main():
    # rival claims are collected for so long before one is granted
    policy = PoolPolicy(assignment=AssignmentRule.BEST_BID, hold_off_ms=2000)
    async with Node(listen=LOCAL) as office:
        pool = await office.create_pool("translations", policy=policy)
        async with Node(listen=LOCAL, bootstrap=office.addresses) as home:
            await home.join_pool(pool.id, timeout_s=60)
            async with Node(listen=LOCAL, bootstrap=office.addresses) as abroad:
                await abroad.join_pool(pool.id, timeout_s=60)
                await home.host(Translator("machine", price=3))
                await abroad.host(Translator("professional", price=90))
                handles = [await pool.submit(Task("translate", {"text": text}, key=text)) for text in WORDS]
                with trio.fail_after(60):
                    for handle in handles:
                        result = await handle.result()
                        print(handle.view.inputs["text"], "→", result.value["text"], "by the", result.value["by"])


trio.run(main)
