--- Seconds after which a test gives up waiting for a program, a terminal or a file. Only something that hangs takes
--- so long, even on a busy machine.
return tonumber(os.getenv 'CR_PATIENCE') or 1800
