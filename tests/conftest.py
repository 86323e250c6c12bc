"""What holds for every test."""

import signal

# Started in the background of a script, this process may have inherited an ignored SIGINT, and
# programs that tests start would inherit it too; Ctrl-C tests need the ordinary state.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
