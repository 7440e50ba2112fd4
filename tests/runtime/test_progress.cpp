#include <fcntl.h>
#include <gtest/gtest.h>
#include <pty.h>
#include <spdlog/sinks/ostream_sink.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <sstream>
#include <thread>

#include "runtime/progress.h"

namespace notellm {
namespace {
using namespace std::chrono_literals;

TEST(Format, Seconds) {
  EXPECT_EQ(format_seconds(0), "0.0 s");
  EXPECT_EQ(format_seconds(0.44), "0.4 s");
  EXPECT_EQ(format_seconds(0.97), "1 s");
  EXPECT_EQ(format_seconds(59.4), "59 s");
  EXPECT_EQ(format_seconds(59.6), "1 min 0 s");
  EXPECT_EQ(format_seconds(125), "2 min 5 s");
  EXPECT_EQ(format_seconds(3599.9), "1 h 0 min");
  EXPECT_EQ(format_seconds(93'784), "26 h 3 min");
}

TEST(Format, Counts) {
  EXPECT_EQ(format_count(0), "0");
  EXPECT_EQ(format_count(999), "999");
  EXPECT_EQ(format_count(1000), "1,000");
  EXPECT_EQ(format_count(1'234'567), "1,234,567");
  EXPECT_EQ(format_count(-999), "-999");
  EXPECT_EQ(format_count(-1000), "-1,000");
}

TEST(Progress, Line) {
  EXPECT_EQ(progress_line("tokenize", 41'200, 63'436, 2), "tokenize  41,200 of 63,436 (64 %)  20,600/s  1 s left");
  EXPECT_EQ(progress_line("read", 5000, 0, 2), "read  5,000  2,500/s");
  EXPECT_EQ(progress_line("read", 0, 10, 3), "read  0 of 10 (0 %)  0.0/s");
  EXPECT_EQ(progress_line("read", 999, 1000, 1), "read  999 of 1,000 (99 %)  999/s  0.0 s left");  // 100 % is the end
}

// The log and the standard error, a terminal, of what runs while it lives.
class Capture {
 public:
  Capture() : old_logger_(spdlog::default_logger()), old_stderr_(dup(STDERR_FILENO)) {
    auto sink = std::make_shared<spdlog::sinks::ostream_sink_mt>(log_);
    sink->set_pattern("%v");
    spdlog::set_default_logger(std::make_shared<spdlog::logger>("test", sink));
  }
  ~Capture() {
    spdlog::set_default_logger(old_logger_);
    dup2(old_stderr_, STDERR_FILENO);
    close(old_stderr_);
  }
  int make_terminal() {
    int controller = -1, terminal = -1;
    if (openpty(&controller, &terminal, nullptr, nullptr, nullptr) != 0) return -1;
    dup2(terminal, STDERR_FILENO);
    close(terminal);
    return controller;
  }
  void make_file() {
    FILE* file = tmpfile();
    dup2(fileno(file), STDERR_FILENO);
    fclose(file);
  }
  std::string log() const { return log_.str(); }

 private:
  std::ostringstream log_;
  std::shared_ptr<spdlog::logger> old_logger_;
  int old_stderr_;
};

TEST(Progress, LogsFarApartWhereThereIsNoTerminal) {
  Capture capture;
  capture.make_file();
  {
    Progress progress("count", 1000), other_rank("other", 1000, false);
    const auto end = std::chrono::steady_clock::now() + 2300ms;
    while (std::chrono::steady_clock::now() < end) {
      progress.advance();
      other_rank.advance();
      std::this_thread::sleep_for(10ms);
    }
  }
  const std::string log = capture.log();
  EXPECT_EQ(std::ranges::count(log, '\n'), 2) << log;  // one after two seconds and the last
  EXPECT_TRUE(log.starts_with("count  ")) << log;
  EXPECT_NE(log.find(" of 1,000 ("), std::string::npos) << log;
  EXPECT_NE(log.find(" left\ncount  "), std::string::npos) << log;
  EXPECT_NE(log.find(" of 1,000 in "), std::string::npos) << log;
}

TEST(Progress, RewritesOneLineOfATerminal) {
  Capture capture;
  const int controller = capture.make_terminal();
  if (controller < 0) GTEST_SKIP() << "no pseudo-terminal can be had here (is /dev/pts mounted?)";
  {
    Progress progress("count", 4);
    std::this_thread::sleep_for(2050ms);
    progress.advance();
    progress.advance();  // within 200 ms of the line before: not shown
    std::this_thread::sleep_for(250ms);
    progress.advance();
    progress.advance();
  }
  std::string text;
  fcntl(controller, F_SETFL, O_NONBLOCK);
  char buffer[1000];
  for (ssize_t got; (got = read(controller, buffer, sizeof(buffer))) > 0;)
    text.append(buffer, static_cast<size_t>(got));
  close(controller);
  EXPECT_EQ(capture.log(), "");
  EXPECT_EQ(std::ranges::count(text, '\n'), 1) << text;
  EXPECT_TRUE(text.starts_with("\rcount  1 of 4 (25 %)")) << text;
  EXPECT_EQ(text.find("2 of 4"), std::string::npos) << text;
  EXPECT_NE(text.find(" left\x1b[K\rcount  3 of 4 (75 %)"), std::string::npos) << text;
  EXPECT_NE(text.find(" left\x1b[K\rcount  4 in "), std::string::npos) << text;
  EXPECT_TRUE(text.ends_with("/s\x1b[K\r\n")) << text;
}

TEST(Progress, ShortWorkIsSilent) {
  Capture capture;
  capture.make_file();
  {
    Progress progress("short", 10);
    progress.advance(10);
  }
  EXPECT_EQ(capture.log(), "");
}

}  // namespace
}  // namespace notellm
