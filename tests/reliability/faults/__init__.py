"""How is a program killed, or its disk filled, at exactly its k-th call that changes files?

By watching a copy of it (`fork`) through ptrace: the kernel stops the copy before each system call that writes, renames, makes
or removes something under a folder, whoever makes the call: Python, safetensors in Rust, torch in C++. Replacing functions of
`os`, the usual shim, misses the last two. A copy of a process that stands right before a save costs milliseconds, a new process
with its imports costs seconds.

    watch.py      the copy, its calls, and the fault
    calls.py      which system calls change files, and how they are read
    walks.py      k from the first call to the last, with what must hold after each fault
    cases.py      the saves that are walked through
"""
