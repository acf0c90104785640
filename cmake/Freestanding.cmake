# add_blob(NAME LINKER_SCRIPT SRC...): compiles freestanding, position-independent code that runs in somebody else's address
# space, links it flat at address 0 and embeds it. Gives the object library target NAME, which defines
#   extern const unsigned char NAME_start[], NAME_end[];   (the flat image; entry at offset 0)
# The code must use general registers only, since the floating-point state of the task it runs in stays in place.
function(add_blob NAME LINKER_SCRIPT)
  set(obj ${CMAKE_CURRENT_BINARY_DIR}/${NAME})
  set(objects)
  # Loops that copy must not become calls of memcpy(3); clang does without the flag when told -fno-builtin.
  set(loops)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    set(loops -fno-tree-loop-distribute-patterns)
  endif()
  foreach(src IN LISTS ARGN)
    get_filename_component(base ${src} NAME_WE)
    set(o ${obj}.${base}.o)
    add_custom_command(OUTPUT ${o}
      COMMAND ${CMAKE_CXX_COMPILER} -std=c++20 -O2 -ffreestanding -fno-builtin -fpie -fno-plt -nostdlib -fno-exceptions
              -fno-rtti -fno-stack-protector -fno-asynchronous-unwind-tables -fcf-protection=none -mgeneral-regs-only
              -mno-red-zone ${loops} -fvisibility=hidden -fno-jump-tables -fno-strict-aliasing
              -fno-threadsafe-statics -Wall -Wextra -Werror -D_GNU_SOURCE -I${CMAKE_SOURCE_DIR}
              -MD -MF ${o}.d -c ${CMAKE_CURRENT_SOURCE_DIR}/${src} -o ${o}
      DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/${src} DEPFILE ${o}.d VERBATIM)
    list(APPEND objects ${o})
  endforeach()
  set(script ${CMAKE_SOURCE_DIR}/${LINKER_SCRIPT})
  # Written only if it changes: the agents need not be linked anew after each run of CMake.
  file(CONFIGURE OUTPUT ${obj}.embed.S @ONLY CONTENT "
  .section .rodata
  .balign 64
  .globl ${NAME}_start
  .globl ${NAME}_end
${NAME}_start:
  .incbin \"${obj}.bin\"
${NAME}_end:
  .byte 0
  .section .note.GNU-stack,\"\",@progbits
")
  add_custom_command(OUTPUT ${obj}.bin
    COMMAND ${CMAKE_CXX_COMPILER} -nostdlib -static-pie -Wl,--no-dynamic-linker,-z,norelro,--build-id=none,-T,${script}
            -o ${obj}.elf ${objects}
    # A relocation left over would mean an absolute address in code that runs anywhere.
    COMMAND sh -c "! readelf -rW ${obj}.elf | grep -q R_X86_64"
    COMMAND objcopy -O binary -j .blob ${obj}.elf ${obj}.bin
    DEPENDS ${objects} ${script} VERBATIM)
  set_source_files_properties(${obj}.embed.S PROPERTIES OBJECT_DEPENDS ${obj}.bin)
  add_library(${NAME} OBJECT ${obj}.embed.S)
endfunction()
