# cmake -DSOURCE=… -DFILE=… -P commit.cmake: a header with the commit of the sources, written only where it changed.
execute_process(COMMAND git describe --always --dirty --abbrev=12 --exclude=* WORKING_DIRECTORY ${SOURCE}
  OUTPUT_VARIABLE commit OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE status)
if(NOT status EQUAL 0)
  set(commit unknown)
endif()
file(CONFIGURE OUTPUT ${FILE} CONTENT "#define NOTELLM_COMMIT \"${commit}\"\n")
