# NOTELLM_CUDA_BUILT and the target notellm_cuda: the CUDA language and the libraries beside it, where they are found.
set(NOTELLM_CUDA_BUILT FALSE CACHE INTERNAL "whether the CUDA backend is part of this build")
if(NOTELLM_CUDA STREQUAL "OFF")
  message(STATUS "CUDA backend: left out (NOTELLM_CUDA=OFF)")
  return()
endif()

find_program(NOTELLM_NVCC nvcc HINTS $ENV{CUDACXX} $ENV{CUDA_HOME}/bin /usr/local/cuda/bin)
if(NOTELLM_NVCC)
  get_filename_component(cuda_root "${NOTELLM_NVCC}" REALPATH)
  get_filename_component(cuda_root "${cuda_root}/../.." ABSOLUTE)
endif()
set(cuda_libraries cudart cublasLt nccl cudnn)
set(cuda_missing "")
foreach(library ${cuda_libraries})
  find_library(NOTELLM_LIB_${library} ${library} HINTS ${cuda_root}/lib64 ${cuda_root}/targets/x86_64-linux/lib)
  if(NOT NOTELLM_LIB_${library})
    list(APPEND cuda_missing ${library})
  endif()
endforeach()

if(NOT NOTELLM_NVCC OR cuda_missing)
  if(NOTELLM_CUDA STREQUAL "ON")
    message(FATAL_ERROR "NOTELLM_CUDA=ON, but nvcc or these libraries were not found: nvcc=${NOTELLM_NVCC} ${cuda_missing}")
  endif()
  message(STATUS "CUDA backend: left out (nvcc: ${NOTELLM_NVCC}; libraries not found: ${cuda_missing})")
  return()
endif()

# Machine code for A100 and H100, and the PTX of both, from which newer GPUs, and the tests without a GPU, start.
set(CMAKE_CUDA_COMPILER ${NOTELLM_NVCC})
set(CMAKE_CUDA_ARCHITECTURES 80 90 CACHE STRING "What the CUDA sources are compiled for")
set(CMAKE_CUDA_RUNTIME_LIBRARY Shared)
enable_language(CUDA)
set(NOTELLM_CUDA_BUILT TRUE CACHE INTERNAL "")
set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")  # which CMake 3.25 does not know of a newer nvcc
message(STATUS "CUDA backend: nvcc ${CMAKE_CUDA_COMPILER_VERSION}")

# fmt switches its constexpr off for nvcc, and then contradicts itself.
add_library(notellm_cuda INTERFACE)
target_compile_options(notellm_cuda INTERFACE
  $<$<COMPILE_LANGUAGE:CUDA>:-lineinfo -DFMT_USE_CONSTEXPR=1 --Werror=all-warnings>)
target_include_directories(notellm_cuda SYSTEM INTERFACE ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
# RUNPATH, not RPATH: LD_LIBRARY_PATH comes first, by which the tests put their own libraries in place of NVIDIA's.
target_link_options(notellm_cuda INTERFACE -Wl,--enable-new-dtags)
foreach(library ${cuda_libraries})
  target_link_libraries(notellm_cuda INTERFACE ${NOTELLM_LIB_${library}})
endforeach()
