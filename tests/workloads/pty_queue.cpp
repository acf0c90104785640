// What waits in pseudo-terminals: input by lines (whole ones, one that ended without a newline, an end of file, one
// that is being typed and can still be edited), input without lines, output that was processed, packets, the output of
// a slave that is closed. All is read at the check, and put there again.
#include <poll.h>

#include <string>
#include <vector>

#include "terminal.h"

using namespace workload;

namespace {

std::string all_bytes(int from, int to) {
  std::string text;
  for (int c = from; c < to; ++c) text += static_cast<char>(c);
  return text;
}

/// What one read gives.
std::string one_read(int fd, const std::string& what) {
  char text[8192];
  pollfd p{fd, POLLIN, 0};
  must(poll(&p, 1, 2000), "poll");
  expect((p.revents & POLLIN) != 0, what + " is not there to be read");
  return {text, static_cast<size_t>(must(read(fd, text, sizeof text), "read a terminal"))};
}

void expect_text(const std::string& got, const std::string& want, const std::string& what) {
  if (got != want)
    throw std::runtime_error(what + " has " + std::to_string(got.size()) + " bytes '" + got.substr(0, 80) + "', not " +
                             std::to_string(want.size()) + " '" + want.substr(0, 80) + "'");
}

class Queues {
 public:
  Queues() {
    termios t = modes_of(lines_.slave);
    t.c_lflag |= ICANON | ECHO | ECHOCTL | IEXTEN;
    must(tcsetattr(lines_.slave, TCSANOW, &t), "tcsetattr");
    make_raw(raw_.slave);
    make_raw(big_.slave);
    const int on = 1;
    must(ioctl(packets_.master, TIOCPKT, &on), "TIOCPKT");
    fill();
  }

  void verify() {
    expect_text(one_read(lines_.slave, "the first line"), "first\n", "the first line");
    expect_text(one_read(lines_.slave, "a line with quoted characters"), "sec\nond\x01\x02\x03\x04\n",
                "a line with quoted characters");
    expect_text(one_read(lines_.slave, "a line without its newline"), "no newline\x02", "a line without its newline");
    expect_text(one_read(lines_.slave, "an end of file"), "", "an end of file");
    pollfd p{lines_.slave, POLLIN, 0};
    must(poll(&p, 1, 0), "poll");
    expect(p.revents == 0, "there is a line more");
    put_text(lines_.master, "\x7f\x7f-ed\r");
    expect_text(one_read(lines_.slave, "the line that was typed"), "half typ-ed\n", "the line that was typed");
    const std::string echo = take_text(lines_.master, 4096);
    expect(echo.starts_with("first\r\nsec") && echo.find("half typed\b \b\b \b-ed\r\n") != std::string::npos,
           "the echo is '" + echo + "'");
    expect_text(take_text(raw_.slave, raw_input_.size()), raw_input_, "the raw input");
    expect_text(take_text(raw_.master, raw_output_.size()), raw_output_, "the raw output");
    expect_text(take_text(big_.master, big_output_.size()), big_output_, "the big output");
    expect_text(one_read(packets_.master, "the packet"), std::string("\0out\r\n", 6), "the packet");
    expect_text(one_read(closed_, "the output of a closed slave"), "last words\r\n", "the output of a closed slave");
    char byte;
    expect(read(closed_, &byte, 1) == -1 && errno == EIO, "a master whose slave is closed sees no hang-up");
    for (const int fd : {lines_.slave, lines_.master, raw_.slave, raw_.master, big_.master, packets_.master}) {
      pollfd more{fd, POLLIN, 0};
      must(poll(&more, 1, 0), "poll");
      expect((more.revents & POLLIN) == 0, "a terminal has more to read");
    }
    fill();
  }

 private:
  void fill() {
    put_text(lines_.master,
             "first\rsec\x16\nond\x16\x01\x16\x02\x16\x03\x16\x04\rno newline\x16\x02\x04\x04half typed");
    put_text(raw_.master, raw_input_);
    put_text(raw_.slave, raw_output_);
    put_text(big_.slave, big_output_);
    put_text(packets_.slave, "out\n");
    const int slave = open_slave(closed_);
    put_text(slave, "last words\n");
    close(slave);
  }

  Pty lines_ = new_pty(), raw_ = new_pty(), big_ = new_pty(), packets_ = new_pty();
  int closed_ = new_master();
  std::string raw_input_ = all_bytes(0, 256), raw_output_ = "\x1b[2J" + all_bytes(1, 256);
  std::string big_output_ = std::string(4500, 'b') + std::string(4500, 'c');
};

}  // namespace

int main(int argc, char** argv) {
  return run(
      [&] {
        Workload w(argc, argv);
        Queues queues;
        w.serve([&] { queues.verify(); });
      },
      "pty_queue");
}
