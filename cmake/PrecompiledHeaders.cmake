# Most of the time of a small file goes into the headers of others, so these are parsed once for many targets. Files
# still include what they use: -DCMAKE_DISABLE_PRECOMPILE_HEADERS=ON builds as well.
set(std_headers <algorithm> <array> <atomic> <charconv> <chrono> <cmath> <cstdint> <cstring> <functional> <map> <memory>
  <mutex> <optional> <set> <span> <string> <string_view> <variant> <vector>)
# Whatever a set holds, each file pays for: templates that its headers leave to be instantiated are, in every one.
set(test_headers <filesystem> <fstream> <random> <sstream> <thread>)
# Not <signal.h>, whose macro sigmask is the name of a field in an image.
set(system_headers <fcntl.h> <poll.h> <sys/mman.h> <sys/socket.h> <sys/stat.h> <sys/syscall.h> <sys/types.h>
  <unistd.h>)

# Those that most others include; before <gtest/gtest.h>, which includes <signal.h>.
set(schemas <images/core.pb.h> <images/fdinfo.pb.h> <migration.pb.h>)

# add_precompiled(NAME HEADERS... LIBRARIES ...): one set of precompiled headers, compiled as our own code is.
function(add_precompiled NAME)
  cmake_parse_arguments(ARG "" "" "HEADERS;LIBRARIES" ${ARGN})
  set(source ${CMAKE_CURRENT_BINARY_DIR}/${NAME}.cpp)
  if(NOT EXISTS ${source})
    file(WRITE ${source} "")
  endif()
  add_library(${NAME} OBJECT ${source})
  target_link_libraries(${NAME} PRIVATE migrate_options ${ARG_LIBRARIES})
  target_precompile_headers(${NAME} PRIVATE ${ARG_HEADERS})
endfunction()

add_precompiled(precompiled_plain HEADERS ${std_headers} ${system_headers})
add_precompiled(precompiled_host HEADERS ${std_headers} ${system_headers} <fmt/core.h> LIBRARIES spdlog::spdlog)
add_precompiled(precompiled_images HEADERS ${std_headers} ${system_headers} <fmt/core.h> <google/protobuf/message_lite.h>
  <google/protobuf/repeated_field.h> ${schemas} LIBRARIES spdlog::spdlog proto_images proto_migration)
if(MIGRATE_TESTS)
  find_package(GTest REQUIRED)
  add_precompiled(precompiled_tests HEADERS ${std_headers} ${test_headers} ${system_headers}
    <google/protobuf/message_lite.h> <google/protobuf/repeated_field.h> ${schemas} <fmt/core.h> <gtest/gtest.h>
    LIBRARIES spdlog::spdlog proto_images proto_migration GTest::gtest)
  compile_plainly(precompiled_tests)
endif()

# use_precompiled(FOLDER): gives every target of our own code below FOLDER the set that its libraries call for.
function(use_precompiled FOLDER)
  get_property(folders DIRECTORY ${FOLDER} PROPERTY SUBDIRECTORIES)
  foreach(folder IN LISTS folders)
    use_precompiled(${folder})
  endforeach()
  get_property(targets DIRECTORY ${FOLDER} PROPERTY BUILDSYSTEM_TARGETS)
  foreach(target IN LISTS targets)
    get_target_property(libraries ${target} LINK_LIBRARIES)
    get_target_property(sources ${target} SOURCES)
    if(NOT libraries OR NOT sources MATCHES "\\.cpp" OR target MATCHES "^precompiled_")
      continue()
    endif()
    set(others ${libraries})
    list(REMOVE_ITEM others migrate_options migrate_whole_tree Threads::Threads)
    if("GTest::gtest" IN_LIST libraries)
      if(NOT others MATCHES "core_|session|pageserver|lazypages|report")
        continue()
      endif()
      set(precompiled precompiled_tests)
    elseif(others MATCHES "proto_|core_dump|core_restore|session_(journal|guardian|handover|wire|destination)|migrate_session")
      set(precompiled precompiled_images)
    elseif(others)
      set(precompiled precompiled_host)
    else()
      set(precompiled precompiled_plain)
    endif()
    target_precompile_headers(${target} REUSE_FROM ${precompiled})
  endforeach()
endfunction()
