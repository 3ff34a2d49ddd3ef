"""A chat in the terminal. The state is the conversation: every turn computes only what is new in it.

Run it with `stemma run examples/chat.py`; an empty line or Ctrl-D ends it.
"""

from __future__ import annotations

import stemma
from stemma import ProgramState, assistant, gen, system, user


def read() -> str:
    try:
        return input("you    ").strip()
    except EOFError:
        return ""


@stemma.function
def chat(s: ProgramState) -> None:
    s += system("You are a helpful assistant. Answer briefly.")
    while line := read():
        s += user(line)
        s += assistant(gen("reply", max_tokens=64))
        print("model  ", end="")
        for piece in s.text_iter("reply"):
            print(piece, end="", flush=True)
        meta = s.get_meta_info("reply")
        print(f"   ({meta['cached_tokens']} of {meta['prompt_tokens']} prompt tokens cached)")


if __name__ == "__main__":
    chat.run(temperature=0, stream=True).sync()
