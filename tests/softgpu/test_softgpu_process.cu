// softgpu as a whole process shows it: what is found at its end, other machines, the report. The program runs itself
// again, `test_softgpu_process CHILD`, with the environment that a test asks for.
#include <cuda_runtime.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <fstream>
#include <string>

namespace {

__global__ void scale(float* x, int n) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < n) x[i] *= 2;
}

constexpr int n = 1000;
constexpr size_t bytes = n * sizeof(float);

int run_child(const std::string& environment, const char* child, std::string& output) {
  char self[4096];
  const ssize_t length = readlink("/proc/self/exe", self, sizeof self);
  const std::string command =
      "env " + environment + " " + std::string(self, static_cast<size_t>(length)) + " " + child + " 2>&1";
  std::FILE* pipe = popen(command.c_str(), "r");
  output.clear();
  char buffer[512];
  while (std::fgets(buffer, sizeof buffer, pipe)) output += buffer;
  return WEXITSTATUS(pclose(pipe));
}

int child(const std::string& name) {
  float *x = nullptr, *pinned = nullptr;
  if (name == "driver") {
    int version = -1, count = -1;
    cudaDriverGetVersion(&version);
    const cudaError_t error = cudaGetDeviceCount(&count);
    std::printf("%d %s %d\n", version, cudaGetErrorName(error), count);
    return 0;
  }
  const cudaError_t error = cudaMalloc(&x, bytes);
  if (error != cudaSuccess) {
    std::printf("%s\n", cudaGetErrorName(error));
    return 0;
  }
  cudaMallocHost(&pinned, bytes);
  std::memset(pinned, 0, bytes);
  cudaMemcpy(x, pinned, bytes, cudaMemcpyDefault);
  if (name == "unchecked") scale<<<1, 2000>>>(x, n);
  if (name == "image") {
    scale<<<4, 256>>>(x, n);
    std::printf("%s\n", cudaGetErrorName(cudaGetLastError()));
  }
  if (name == "leak") return 0;
  if (name == "host") x[3] = 1;
  cudaStream_t stream = nullptr;
  if (name == "streams") cudaStreamCreate(&stream);
  cudaFree(x);
  cudaFreeHost(pinned);
  return name == "gives_up" ? 3 : 0;
}

TEST(SoftgpuProcess, EndsWith99AfterFindings) {
  std::string output;
  EXPECT_EQ(run_child("A=1", "clean", output), 0) << output;
  EXPECT_EQ(run_child("A=1", "leak", output), 99) << output;
  EXPECT_NE(output.find("leak in cudaMalloc\n         4000 bytes"), std::string::npos) << output;
  EXPECT_NE(output.find("leak in cudaMallocHost\n         4000 bytes"), std::string::npos) << output;
  EXPECT_EQ(run_child("A=1", "streams", output), 99) << output;
  EXPECT_EQ(run_child("A=1", "unchecked", output), 99) << output;
  EXPECT_NE(output.find("unchecked_launch in scale"), std::string::npos) << output;
  EXPECT_EQ(run_child("OMPI_COMM_WORLD_RANK=3", "leak", output), 99);
  EXPECT_NE(output.find("softgpu: [rank 3] leak"), std::string::npos) << output;
  EXPECT_EQ(run_child("A=1", "gives_up", output), 3) << output;
}

TEST(SoftgpuProcess, FindsTheHostInDeviceMemory) {
  std::string output;
  EXPECT_EQ(run_child("A=1", "host", output), 99);
  EXPECT_NE(output.find("the host touches byte 12 of device memory"), std::string::npos) << output;
}

TEST(SoftgpuProcess, WritesAReport) {
  const std::string path = testing::TempDir() + "softgpu_report_" + std::to_string(getpid());
  std::string output;
  EXPECT_EQ(run_child("SOFTGPU_REPORT=" + path, "image", output), 0) << output;
  std::ifstream file(path);
  const std::string text(std::istreambuf_iterator<char>(file), {});
  EXPECT_NE(text.find("scale"), std::string::npos) << text;
  EXPECT_NE(text.find("\"global_read_bytes\": 4000"), std::string::npos) << text;
  std::remove(path.c_str());
}

TEST(SoftgpuProcess, OtherMachines) {
  std::string output;
  EXPECT_EQ(run_child("SOFTGPU_DRIVER=0", "driver", output), 0);
  EXPECT_EQ(output, "0 cudaErrorInsufficientDriver 0\n");
  EXPECT_EQ(run_child("SOFTGPU_DRIVER=12020", "driver", output), 0);
  EXPECT_EQ(output, "12020 cudaErrorInsufficientDriver 0\n");
  EXPECT_EQ(run_child("SOFTGPU_DEVICES=2", "driver", output), 0);
  EXPECT_EQ(output, "13000 cudaSuccess 2\n");
  EXPECT_EQ(run_child("SOFTGPU_MEMORY_MB=0", "clean", output), 0);
  EXPECT_EQ(output, "cudaErrorMemoryAllocation\n");
  EXPECT_EQ(run_child("SOFTGPU_ARCH=75", "image", output), 0);
  EXPECT_EQ(output, "cudaErrorNoKernelImageForDevice\n");
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 2 && argv[1][0] != '-') return child(argv[1]);
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
