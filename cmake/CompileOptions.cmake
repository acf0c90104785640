# What a backtrace needs, functions and lines: debug info of everything would take a third of the time of a build.
set(CMAKE_CXX_FLAGS_RELWITHDEBINFO "-O2 -g1 -DNDEBUG")
if(MIGRATE_SANITIZE)
  set(CMAKE_CXX_FLAGS_DEBUG "-g1")
endif()

# GCC collects garbage whenever its heap has doubled, and walks the precompiled headers (100 MiB) for that each time: more
# than a third of the time of a build. No file of ours comes near this bound (KiB).
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  add_compile_options($<$<COMPILE_LANGUAGE:CXX>:--param=ggc-min-heapsize=786432>)
endif()

# compile_quickly(TARGET...): for code whose time goes into system calls, and code that nobody waits for: no difference was
# measured in a dump or a move, and it takes an eighth less of a build. Not without any optimization: it shares precompiled
# headers with code that has it.
function(compile_quickly)
  foreach(target IN LISTS ARGN)
    target_compile_options(${target} PRIVATE $<$<CONFIG:RelWithDebInfo>:-O1>)
  endforeach()
endfunction()

# compile_plainly(TARGET...): without optimization; for tests, which have precompiled headers of their own.
function(compile_plainly)
  foreach(target IN LISTS ARGN)
    target_compile_options(${target} PRIVATE $<$<CONFIG:RelWithDebInfo>:-O0>)
  endforeach()
endfunction()

# compile_together(TARGET...): six files at a time. Half of the time that a file takes goes into what it has in common with
# the others, above all templates that each has to instantiate. So names in anonymous namespaces are a folder's, not a
# file's. Not in a plain debug build, whose compile commands scripts/lint looks up by file, and which finds what a file
# forgets to include.
function(compile_together)
  if(CMAKE_BUILD_TYPE STREQUAL "Debug" AND NOT MIGRATE_SANITIZE)
    return()
  endif()
  set_target_properties(${ARGN} PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 6)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    # GCC takes a class of a .cpp that another includes for a header's.
    foreach(target IN LISTS ARGN)
      target_compile_options(${target} PRIVATE -Wno-subobject-linkage)
    endforeach()
  endif()
endfunction()

# Usage requirements of all our own code: `migrate_options`. Generated code links without it.
add_library(migrate_options INTERFACE)
target_compile_options(migrate_options INTERFACE
  -Wall -Wextra -Wpedantic -Werror -Wshadow -Wnon-virtual-dtor -Wold-style-cast -Woverloaded-virtual
  -Wnull-dereference -Wno-missing-field-initializers)
# GCC 12 sees null pointers in inlined code of its own standard library when it optimizes.
target_compile_options(migrate_options INTERFACE $<$<NOT:$<CONFIG:Debug>>:-Wno-null-dereference>)
# Restorer, parasite and host side share addresses and structs: no surprises from strict aliasing.
target_compile_options(migrate_options INTERFACE -fno-strict-aliasing)
target_compile_definitions(migrate_options INTERFACE _GNU_SOURCE _FILE_OFFSET_BITS=64)
if(MIGRATE_SANITIZE)
  add_compile_options(-fsanitize=address,undefined -fno-omit-frame-pointer -fno-sanitize-recover=undefined)
  add_link_options(-fsanitize=address,undefined)
  # At a fixed address: what the sanitizers know of each place in the code is millions of pointers, and to relocate them
  # took most of the time of a small test.
  add_compile_options($<$<NOT:$<STREQUAL:$<TARGET_PROPERTY:TYPE>,SHARED_LIBRARY>>:-fno-pie>)
  add_link_options($<$<STREQUAL:$<TARGET_PROPERTY:TYPE>,EXECUTABLE>:-no-pie>)
  # Executables are 200 MiB with all that the sanitizers add; the default linker takes half as long again for each.
  find_program(MIGRATE_GOLD ld.gold)
  if(MIGRATE_GOLD)
    add_link_options(-fuse-ld=gold)
  endif()
  # GCC 12 reports paths that cannot be taken once the sanitizers have instrumented them.
  target_compile_options(migrate_options INTERFACE -Wno-null-dereference -Wno-maybe-uninitialized)
  # Blobs are freestanding and must not be instrumented: see Freestanding.cmake.
endif()
if(MIGRATE_FUZZER)
  # Of our own code only: with the sanitizers, for libFuzzer, and counted for llvm-cov. Clang warns of other things than GCC.
  target_compile_options(migrate_options INTERFACE -Wno-error -fsanitize=address,undefined,fuzzer-no-link
    -fno-sanitize-recover=undefined -fprofile-instr-generate -fcoverage-mapping)
  target_link_options(migrate_options INTERFACE -fsanitize=address,undefined -fprofile-instr-generate)
endif()
