#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdio>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "runtime/files.h"
#include "tests/support/expect_error.h"
#include "tests/support/small_disk.h"
#include "tests/support/temp_dir.h"

namespace notellm {
namespace {
namespace fs = std::filesystem;

std::vector<std::string> names_in(const fs::path& folder) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder)) names.push_back(entry.path().filename());
  return names;
}

TEST(Files, WhatIsWrittenIsRead) {
  const test::TempDir folder;
  std::string content(3'000'000, '\0');
  for (size_t i = 0; i < content.size(); ++i) content[i] = static_cast<char>(i * 7 + i / 1000);
  for (const std::string& text : {std::string(), std::string("a\0b\n", 4), content}) {
    write_file(folder / "a", text);
    EXPECT_EQ(read_file(folder / "a"), text);
    EXPECT_EQ(names_in(folder.path()), std::vector<std::string>{"a"});
  }
}

TEST(Files, WhetherAFileCanBeWrittenIsKnownBefore) {
  const test::TempDir folder;
  require_writable(folder / "new");
  write_file(folder / "old", "text");
  require_writable(folder / "old");
  EXPECT_EQ(read_file(folder / "old"), "text");
  EXPECT_EQ(names_in(folder.path()), std::vector<std::string>{"old"});
  require_writable("in_the_working_directory");
  EXPECT_ERROR(io, "none", require_writable(folder / "none" / "new"));
  EXPECT_ERROR(io, "old", require_writable(folder / "old" / "new"));
  EXPECT_ERROR(io, "folder", require_writable(folder.path()));
}

TEST(Files, NamesOfOthersStayInTheFolder) {
  const test::TempDir folder;
  const fs::path inner = folder / "inner";
  fs::create_directory(inner);
  write_file(folder / "outside", "x");
  EXPECT_EQ(file_inside(inner, "not there"), inner / "not there");
  write_file(inner / "there", "x");
  fs::create_symlink("there", inner / "link");
  EXPECT_EQ(file_inside(inner, "link"), inner / "link");
  for (const std::string name : {"", ".", "..", "../outside", "/etc/passwd", "a/b", "there/"})
    EXPECT_ERROR(checkpoint, "a file named '" + name + "' would lie outside", file_inside(inner, name));
  EXPECT_ERROR(checkpoint, "a file named 'there' would lie outside", file_inside(inner, std::string("there\0x", 7)));
  fs::create_symlink("../outside", inner / "out");
  EXPECT_ERROR(checkpoint, "is a link out of the folder, to " + (folder / "outside").string(),
               file_inside(inner, "out"));
  fs::create_symlink("../nowhere", inner / "dangling");
  EXPECT_ERROR(checkpoint, "is a link to nothing", file_inside(inner, "dangling"));
}

TEST(Files, PiecesAreJoined) {
  const test::TempDir folder;
  const std::vector<std::string_view> pieces = {"one ", "", "two"};
  write_file(folder / "a", pieces);
  EXPECT_EQ(read_file(folder / "a"), "one two");
}

TEST(Files, PiecesThatFailLeaveTheOldFile) {
  const test::TempDir folder;
  write_file(folder / "a", "old");
  const auto next = []() -> std::string_view { fail(ErrorKind::device, "the GPU is gone"); };
  EXPECT_ERROR(device, "the GPU is gone", write_file(folder / "a", next));
  EXPECT_EQ(read_file(folder / "a"), "old");
  EXPECT_EQ(names_in(folder.path()), std::vector<std::string>{"a"});
}

TEST(Files, APathWithoutFolderIsInTheWorkingDirectory) {
  const test::TempDir folder;
  const fs::path before = fs::current_path();
  fs::current_path(folder.path());
  write_file("plain", "x");
  fs::current_path(before);
  EXPECT_EQ(read_file(folder / "plain"), "x");
}

TEST(Files, AFullDiskKeepsTheOldContent) {
  const test::TempDir folder;
  write_file(folder / "a", "old");
  {
    const test::SmallDisk disk(4096);
    EXPECT_ERROR(io, "cannot write " + (folder / "a").string() + ": File too large",
                 write_file(folder / "a", std::string(100'000, 'x')));
  }
  EXPECT_EQ(read_file(folder / "a"), "old");
  EXPECT_EQ(names_in(folder.path()), std::vector<std::string>{"a"});
}

TEST(Files, ALinkStaysAndLeadsToTheNewContent) {
  const test::TempDir folder;
  fs::create_directories(folder / "links");
  fs::create_directories(folder / "files");
  write_file(folder / "files/old", "old");
  fs::create_symlink("../files/old", folder / "links/near");
  fs::create_symlink(folder / "links/near", folder / "links/far");  // of a link, by its whole path
  fs::create_symlink("../files/new", folder / "links/dangling");
  for (const std::string name : {"near", "far", "dangling"}) {
    const fs::path link = folder / ("links/" + name);
    require_writable(link);
    write_file(link, name);
    EXPECT_TRUE(fs::is_symlink(link));
    EXPECT_EQ(read_file(link), name);
  }
  EXPECT_EQ(read_file(folder / "files/old"), "far");
  EXPECT_EQ(read_file(folder / "files/new"), "dangling");
  EXPECT_EQ(names_in(folder / "links").size(), 3);
  EXPECT_EQ(names_in(folder / "files").size(), 2);
  fs::create_symlink("../none/new", folder / "nowhere");
  EXPECT_ERROR(io, "there is no folder", require_writable(folder / "nowhere"));
  EXPECT_ERROR(io, "cannot write " + (folder / "nowhere").string(), write_file(folder / "nowhere", "x"));
  fs::create_symlink("circle", folder / "circle");
  EXPECT_ERROR(io, "Too many levels", require_writable(folder / "circle"));
  EXPECT_ERROR(io, "Too many levels", write_file(folder / "circle", "x"));
}

TEST(Files, APipeIsWrittenInto) {
  const test::TempDir folder;
  const fs::path pipe = folder / "pipe";
  ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
  require_writable(pipe);
  const std::string content(300'000, 'q');  // more than a pipe holds
  std::string got;
  std::thread reader([&] { got = read_file(pipe); });
  write_file(pipe, content);
  reader.join();
  EXPECT_EQ(got, content);
  EXPECT_TRUE(fs::is_fifo(pipe));
  EXPECT_EQ(names_in(folder.path()), std::vector<std::string>{"pipe"});
}

TEST(Files, ADeviceStaysOne) {
  const test::TempDir folder;
  const fs::path null = folder / "null", full = folder / "full";
  // Only root may make them, and not everywhere; /dev's own are not put at risk.
  if (mknod(null.c_str(), S_IFCHR | 0600, makedev(1, 3)) != 0 ||
      mknod(full.c_str(), S_IFCHR | 0600, makedev(1, 7)) != 0 || access(null.c_str(), W_OK) != 0)
    GTEST_SKIP() << "no devices may be made here";
  require_writable(null);
  write_file(null, "x");
  EXPECT_ERROR(io, "cannot write " + full.string() + ": No space left", write_file(full, "x"));
  EXPECT_TRUE(fs::is_character_file(null));
  EXPECT_TRUE(fs::is_character_file(full));
}

// As /dev/stdout is one.
TEST(Files, AnOpenFileIsGoneOnFromWhereItIs) {
  const test::TempDir folder;
  const int open_file = open((folder / "a").c_str(), O_WRONLY | O_CREAT, 0600);
  const fs::path link = "/proc/self/fd/" + std::to_string(open_file);
  fs::create_symlink("/proc/self/fd", folder / "fd");  // as /dev/fd
  EXPECT_EQ(write(open_file, "before, ", 8), 8);
  require_writable(link);
  write_file(link, "within, ");
  write_file(folder / "fd" / link.filename(), "again, ");
  EXPECT_EQ(write(open_file, "after", 5), 5);
  close(open_file);
  EXPECT_EQ(read_file(folder / "a"), "before, within, again, after");
  EXPECT_ERROR(io, "cannot write " + link.string(), write_file(link, "x"));
}

TEST(Files, WrittenInPlace) {
  const test::TempDir folder;
  create_file(folder / "a", "head", 10);
  EXPECT_EQ(read_file(folder / "a"), std::string("head\0\0\0\0\0\0", 10));
  FileInPlace first(folder / "a");
  FileInPlace second(folder / "a");
  second.write(8, "yz");
  first.write(4, "1");
  FileInPlace moved(std::move(first));
  moved.write(6, "2");
  moved.sync();
  second.sync();
  EXPECT_EQ(read_file(folder / "a"), std::string("head1\0002\0yz", 10));
  create_file(folder / "a", "new", 3);
  EXPECT_EQ(read_file(folder / "a"), "new");
  EXPECT_ERROR(io, "cannot write " + (folder / "none").string() + ": No such file", FileInPlace{folder / "none"});
  EXPECT_ERROR(io, "cannot write " + (folder / "no/such").string(), create_file(folder / "no/such", "", 1));
  const test::SmallDisk disk(100);
  EXPECT_ERROR(io, (folder / "b").string() + ": File too large", create_file(folder / "b", "x", 101));
  create_file(folder / "b", "x", 100);
  FileInPlace file(folder / "b");
  EXPECT_ERROR(io, (folder / "b").string() + ": File too large", file.write(99, "xy"));
}

TEST(Files, FailuresNameTheFileAndLeaveNothing) {
  const test::TempDir folder;
  fs::create_directory(folder / "folder");
  EXPECT_ERROR(io, "cannot read " + (folder / "none").string() + ": No such file or directory",
               read_file(folder / "none"));
  EXPECT_ERROR(io, "Is a directory", read_file(folder / "folder"));
  EXPECT_ERROR(io, "cannot write " + (folder / "no/such").string() + ": No such file",
               write_file(folder / "no/such", "x"));
  EXPECT_ERROR(io, "cannot write " + (folder / "folder").string() + ": Is a directory",
               write_file(folder / "folder", "x"));
  EXPECT_ERROR(io, "cannot sync directory " + (folder / "none").string(), sync_directory(folder / "none"));
  EXPECT_ERROR(io, "No such file", checksum_file(folder / "none"));
  EXPECT_EQ(names_in(folder.path()), std::vector<std::string>{"folder"});
}

// A folder with one file.
void make_folder(const fs::path& folder, const std::string& content) {
  fs::create_directory(folder);
  write_file(folder / "a", content);
}

TEST(Files, AFolderTakesTheNameOfAnother) {
  const test::TempDir folder;
  make_folder(folder / "made", "first");
  replace_folder(folder / "made", folder / "it");
  EXPECT_EQ(read_file(folder / "it" / "a"), "first");
  make_folder(folder / "made", "second");
  write_file(folder / "it" / "b", "of the first alone");
  make_folder(folder / "made.removed", "of a killed call");
  make_folder(folder / "it.old", "of somebody else");
  replace_folder(folder / "made", folder / "it");
  EXPECT_EQ(read_file(folder / "it" / "a"), "second");
  EXPECT_EQ(names_in(folder / "it"), std::vector<std::string>{"a"});
  EXPECT_EQ(read_file(folder / "it.old" / "a"), "of somebody else");
  EXPECT_EQ(std::ssize(names_in(folder.path())), 2);
  EXPECT_ERROR(io, "cannot rename " + (folder / "made").string() + " to " + (folder / "it").string() + ": No such file",
               replace_folder(folder / "made", folder / "it"));
  EXPECT_EQ(read_file(folder / "it" / "a"), "second");
}

// Whoever looks finds a whole folder at any time.
TEST(Files, AFolderIsThereWhileItIsReplaced) {
  const test::TempDir folder;
  make_folder(folder / "it", "0");
  std::atomic<bool> done = false;
  int64_t missing = 0, looks = 0;
  std::thread reader([&] {
    struct stat unused;
    for (; !done || looks < 1000; ++looks) missing += stat((folder / "it").c_str(), &unused) != 0;
  });
  for (int i = 0; i < 300; ++i) {
    make_folder(folder / "made", std::to_string(i));
    replace_folder(folder / "made", folder / "it");
  }
  done = true;
  reader.join();
  EXPECT_EQ(missing, 0) << "of " << looks;
}

// From here on renameat2 fails in this thread as it does where a file system cannot exchange names.
void forbid_exchange() {
  sock_filter code[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_renameat2, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EINVAL),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  const sock_fprog program = {std::size(code), code};
  ASSERT_EQ(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
  ASSERT_EQ(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program), 0);
  ASSERT_NE(renameat2(AT_FDCWD, "/a", AT_FDCWD, "/b", RENAME_EXCHANGE), 0);
  ASSERT_EQ(errno, EINVAL);
}

TEST(Files, AFolderIsReplacedWhereNamesCannotBeExchanged) {
  const test::TempDir folder;
  std::thread([&] {
    ASSERT_NO_FATAL_FAILURE(forbid_exchange());
    make_folder(folder / "it", "first");
    make_folder(folder / "made", "second");
    make_folder(folder / "made.removed", "of a killed call");
    replace_folder(folder / "made", folder / "it");
    EXPECT_EQ(read_file(folder / "it" / "a"), "second");
    EXPECT_EQ(names_in(folder.path()), std::vector<std::string>{"it"});
    EXPECT_ERROR(io, "cannot rename", replace_folder(folder / "made", folder / "it"));
    EXPECT_EQ(read_file(folder / "it" / "a"), "second");
    EXPECT_EQ(names_in(folder.path()), std::vector<std::string>{"it"});
  }).join();
}

TEST(Files, Checksums) {
  // Reference values of the xxhash project: XXH3 of the empty text.
  EXPECT_EQ(checksum(""), "99aa06d3014798d86001c324468d497f");
  EXPECT_EQ(hash64(""), 0x2d06800538d394c2u);
  EXPECT_NE(hash64("user"), hash64("user", 1));
  const test::TempDir folder;
  const std::string content(2'500'000, 'q');  // several pieces
  write_file(folder / "a", content);
  EXPECT_EQ(checksum_file(folder / "a"), checksum(content));
  Checksum sum;
  for (size_t begin = 0; begin < content.size(); begin += 700'001)
    sum.add(std::string_view(content).substr(begin, 700'001));
  EXPECT_EQ(sum.text(), checksum(content));
  EXPECT_NE(checksum(content), checksum(std::string_view(content).substr(1)));
}

}  // namespace
}  // namespace notellm
