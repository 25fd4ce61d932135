# Build settings shared by every target, as targets and functions: there are no global flags.
find_package(PkgConfig REQUIRED)
find_package(Threads REQUIRED)

foreach(dep IN ITEMS libfabric liburing liblz4 libzstd libisal libprotobuf-c jansson sqlite3 libcrypto libcurl libsystemd cmocka)
  string(TOUPPER ${dep} var)
  string(REPLACE "-" "_" var ${var})
  pkg_check_modules(${var} REQUIRED IMPORTED_TARGET ${dep})
endforeach()
find_library(INIH_LIBRARY inih REQUIRED) # Debian's inih ships no CMake target we could name
find_path(INIH_INCLUDE ini.h REQUIRED)
find_path(XXHASH_INCLUDE xxhash.h REQUIRED) # used inlined (XXH_INLINE_ALL): the shared library is built for SSE2 only
find_program(PROTOC_C protoc-c REQUIRED)

set(CAIRN_SANITIZE "" CACHE STRING "sanitizers to build with: address,undefined or thread")

add_library(cairn-build INTERFACE)
target_compile_features(cairn-build INTERFACE c_std_11)
target_compile_definitions(cairn-build INTERFACE _GNU_SOURCE)
target_compile_options(cairn-build INTERFACE
  -Wall -Wextra -Werror -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wpointer-arith -Wwrite-strings
  -Wvla -Wformat=2 -Wundef -fno-strict-aliasing -fvisibility=hidden -fno-common)
if(CAIRN_SANITIZE)
  target_compile_options(cairn-build INTERFACE -fsanitize=${CAIRN_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all)
  target_link_options(cairn-build INTERFACE -fsanitize=${CAIRN_SANITIZE})
endif()

# cairn_floor(NAME SOURCES... ) makes the static library of one floor; includes are written from the repository's root.
function(cairn_floor name)
  add_library(${name} STATIC ${ARGN})
  target_link_libraries(${name} PRIVATE cairn-build)
  target_include_directories(${name} PUBLIC ${PROJECT_SOURCE_DIR} ${PROJECT_BINARY_DIR} ${PROJECT_SOURCE_DIR}/include)
  set_target_properties(${name} PROPERTIES POSITION_INDEPENDENT_CODE ON)
endfunction()

# cairn_plugin(NAME SOURCES...) makes plugins/NAME/cairn-NAME.so, found by the daemon from the build tree and installed.
function(cairn_plugin name)
  add_library(plugin-${name} MODULE ${ARGN})
  target_link_libraries(plugin-${name} PRIVATE cairn-build cairn-base)
  set_target_properties(plugin-${name} PROPERTIES PREFIX "" OUTPUT_NAME cairn-${name} LIBRARY_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/plugins)
  install(TARGETS plugin-${name} LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}/cairn)
  set_property(GLOBAL APPEND PROPERTY CAIRN_PLUGINS plugin-${name})
endfunction()

# cairn_relocatable(TARGET) makes an installed program look for its libraries in ../lib first. As DT_RPATH, which a program hands on to
# its plugins and to their libraries, and DT_RUNPATH not: so whatever scripts/bundle packs into lib is found wherever it lies.
function(cairn_relocatable target)
  set_target_properties(${target} PROPERTIES INSTALL_RPATH "$ORIGIN/../lib")
  target_link_options(${target} PRIVATE -Wl,--disable-new-dtags)
endfunction()

# cairn_unit_test(NAME LABEL SOURCES... LIBS libs...) makes one cmocka program, one test of ctest.
function(cairn_unit_test name)
  cmake_parse_arguments(T "" "LABEL" "SOURCES;LIBS" ${ARGN})
  add_executable(${name} ${T_SOURCES})
  target_link_libraries(${name} PRIVATE cairn-build PkgConfig::CMOCKA ${T_LIBS})
  add_test(NAME ${name} COMMAND ${name})
  if(NOT T_LABEL)
    set(T_LABEL unit)
  endif()
  set_tests_properties(${name} PROPERTIES LABELS ${T_LABEL} TIMEOUT 60 SKIP_RETURN_CODE 77)
endfunction()
