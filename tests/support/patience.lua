--- Seconds after which a test gives up a program, a terminal or a file that it waits for. Only what hangs takes so long,
--- on a machine that does many other things too.
return tonumber(os.getenv 'CR_PATIENCE') or 1800
