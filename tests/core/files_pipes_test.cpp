// Pipes and FIFOs.
#include "files_testing.h"

#include <poll.h>
#include <sys/uio.h>

namespace migrate::files_testing {
namespace {

TEST_F(Files, PipesAndFifosKeepTheirData) {
  const std::string big(100'000, 'p');
  const auto images = dump([&] {
    int p[2];
    MUST(::pipe2(p, O_NONBLOCK) == 0);
    MUST(::fcntl(p[1], F_SETPIPE_SZ, 1 << 17) == 1 << 17);
    say(p[1], big);
    MUST(p[0] == 0 && p[1] == 1);
    MUST(::mkfifo(at("fifo").c_str(), 0600) == 0);
    place_at(::open(at("fifo").c_str(), O_RDWR), 5);
    place_at(::open(at("fifo").c_str(), O_WRONLY), 6);
    say(6, "in a fifo");
    MUST(::pipe(p) == 0);
    place_at(p[0], 8);
    ::close(p[1]);  // end of file
  });
  restore(images, [&] {
    MUST(::fcntl(0, F_GETPIPE_SZ) == 1 << 17);
    std::string got;
    for (std::string part; !(part = read_some(0)).empty();) got += part;
    MUST(got == big);
    say(1, "more");
    MUST(read_some(0) == "more");
    ::close(1);
    char c;
    MUST(::read(0, &c, 1) == 0);
    MUST(read_some(5) == "in a fifo");
    MUST((::fcntl(6, F_GETFL) & O_ACCMODE) == O_WRONLY);
    MUST(::read(8, &c, 1) == 0);
  });
}

TEST_F(Files, PipesToTheOutsideAreRefused) {
  Child child([] {
    // Its report pipe, kept open, leads to this process.
  });
  ASSERT_TRUE(child.stopped());
  try {
    dump_tasks({child.pid()});
    FAIL();
  } catch (const Refusal& e) {
    EXPECT_NE(std::string(e.what()).find("has fd 900, the write end of a pipe"), std::string::npos) << e.what();
  }
}

TEST_F(Files, PacketsStayApart) {
  const auto images = dump([] {
    int p[2];
    MUST(::pipe2(p, O_DIRECT) == 0);  // 0, 1
    for (const size_t n : {1, 10, 4096, 7}) say(1, std::string(n, 'p'));
    MUST(::pipe2(p, O_DIRECT) == 0);  // 2, 3
    say(3, "x");
    MUST(::pipe(p) == 0);  // 4, 5
    say(5, "abc");
    say(5, "def");
  });
  restore(images, [] {
    for (const size_t n : {1, 10, 4096, 7}) MUST(read_some(0).size() == n);
    MUST((::fcntl(1, F_GETFL) & O_DIRECT) != 0 && (::fcntl(5, F_GETFL) & O_DIRECT) == 0);
    say(3, "y");
    MUST(read_some(2) == "x" && read_some(2) == "y");
    MUST(read_some(4) == "abcdef");
  });
  refused(
      [] {
        int p[2];
        MUST(::pipe(p) == 0);
        say(p[1], std::string(4096, 's'));  // a full page: nothing is merged into it
        MUST(::fcntl(p[1], F_SETFL, O_DIRECT) == 0);
        say(p[1], "packet");
        say(p[1], "packet");
      },
      "among ordinary data");
}

}  // namespace
}  // namespace migrate::files_testing
