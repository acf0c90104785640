# add_layer(NAME [PUBLIC TARGET...] [PRIVATE TARGET...] [SOURCES FILE...] [EXCLUDE REGEX]): the library of this folder,
# from its *.cpp (or SOURCES).
#
# Headers are found through a folder made for each layer that holds nothing but a link to it, so that what is not linked
# cannot be included: an #include against the direction of the layers does not compile. A layer may only link what was
# defined before it: no circles.
function(add_layer NAME)
  cmake_parse_arguments(L "" "EXCLUDE" "PUBLIC;PRIVATE;SOURCES" ${ARGN})
  if(NOT L_SOURCES)
    file(GLOB L_SOURCES CONFIGURE_DEPENDS *.cpp)
  endif()
  if(L_EXCLUDE)
    list(FILTER L_SOURCES EXCLUDE REGEX ${L_EXCLUDE})
  endif()
  foreach(dependency IN LISTS L_PUBLIC L_PRIVATE)
    if(NOT TARGET ${dependency} AND dependency MATCHES "^(core_|pageserver|lazypages|migrate_|session_|proto_)")
      message(FATAL_ERROR "${NAME} links ${dependency}, which is not below it")
    endif()
  endforeach()
  file(RELATIVE_PATH folder ${CMAKE_SOURCE_DIR} ${CMAKE_CURRENT_SOURCE_DIR})
  set(include ${CMAKE_BINARY_DIR}/include/${NAME})
  get_filename_component(parent ${include}/${folder} DIRECTORY)
  file(MAKE_DIRECTORY ${parent})
  file(CREATE_LINK ${CMAKE_CURRENT_SOURCE_DIR} ${include}/${folder} SYMBOLIC)
  add_library(${NAME} STATIC ${L_SOURCES})
  target_include_directories(${NAME} PUBLIC ${include})
  target_link_libraries(${NAME} PUBLIC migrate_options ${L_PUBLIC} PRIVATE ${L_PRIVATE})
  compile_together(${NAME})
  set_property(GLOBAL APPEND PROPERTY MIGRATE_LAYERS ${NAME})
endfunction()

# write_layers(FILE TARGET...): a line each layer and TARGET: its name, its folder and what it links, for scripts/layers.
function(write_layers FILE)
  get_property(layers GLOBAL PROPERTY MIGRATE_LAYERS)
  set(text "")
  foreach(target IN LISTS layers ARGN)
    get_target_property(folder ${target} SOURCE_DIR)
    file(RELATIVE_PATH folder ${CMAKE_SOURCE_DIR} ${folder})
    get_target_property(type ${target} TYPE)
    set(property LINK_LIBRARIES)
    if(type STREQUAL "INTERFACE_LIBRARY")
      set(property INTERFACE_LINK_LIBRARIES)
    endif()
    get_target_property(links ${target} ${property})
    string(REPLACE ";" " " links "${links}")
    string(APPEND text "${target} ${folder} ${links}\n")
  endforeach()
  file(WRITE ${FILE} "${text}")
endfunction()

# For programs that may see everything: tests and benchmarks.
add_library(migrate_whole_tree INTERFACE)
target_include_directories(migrate_whole_tree INTERFACE ${CMAKE_SOURCE_DIR})
