# SPDX-License-Identifier: Apache-2.0
"""How long a run may take, shared out among its families, and within a family among its loops. What one leaves over is the others'."""
import time

# Of a run's time, about; what is measured in a family and how often is in context.Sizes.
WEIGHTS = {"floors": 4, "codecs": 5, "stall": 27, "peers": 21, "durable": 20, "restore": 10, "training": 14, "growth": 12}


class Budget:
    def __init__(self, seconds, clock=time.monotonic):
        self.clock, self.begin = clock, clock()
        self.end = self.begin + seconds
        self.family_end, self.loops = self.end, 1

    def family(self, name, left, loops):
        """The family is the first of those that are left; so much is what its loops weigh together."""
        share = WEIGHTS[name] / sum(WEIGHTS[n] for n in left)
        self.family_end = self.clock() + max(0.0, self.end - self.clock()) * share
        self.loops = loops

    def left_s(self):
        """Of the family's time."""
        return max(0.0, self.family_end - self.clock())

    def turns(self, n, least, bare, weight=1, say=lambda _: None):
        """Counts to n, and stops before when the loop's share of the time is over: not below `least` while the run has time, never below `bare`."""
        begin = self.clock()
        until = begin + max(0.0, self.family_end - begin) * weight / max(weight, self.loops)
        self.loops -= weight
        for i in range(n):
            now = self.clock()
            if (now >= until and i >= least) or (now >= self.end and i >= bare):
                say(f"  (no time for more than {i} turns of {n})")
                return
            yield i
