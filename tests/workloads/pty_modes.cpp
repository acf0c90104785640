// Pseudo-terminals of one task: modes, size, special characters, packet mode, lock, exclusive use, owner and mode,
// numbers and names; a gap in the numbers, a slave that was never opened, one that was closed, masters that were.
#include <poll.h>
#include <sys/stat.h>

#include <array>
#include <map>
#include <string>
#include <vector>

#include "terminal.h"

using namespace workload;

namespace {

std::string describe_modes(int fd) {
  const termios t = modes_of(fd);
  std::string text;
  for (const unsigned long v : {t.c_iflag, t.c_oflag, t.c_cflag, t.c_lflag, t.c_ispeed, t.c_ospeed})
    text += std::to_string(v) + " ";
  for (int i = 0; i < 19; ++i) text += std::to_string(t.c_cc[i]) + ",";
  winsize size{};
  must(ioctl(fd, TIOCGWINSZ, &size), "TIOCGWINSZ");
  for (const unsigned v : {size.ws_row, size.ws_col, size.ws_xpixel, size.ws_ypixel}) text += " " + std::to_string(v);
  return text;
}

int flag(int fd, unsigned long request) {
  int value = -1;
  must(ioctl(fd, request, &value), "a flag of a terminal");
  return value;
}

std::string describe_master(int fd) {
  std::string text = slave_name(fd) + " " + describe_modes(fd);
  for (const unsigned long request : {TIOCGPKT, TIOCGPTLCK, TIOCGEXCL}) text += " " + std::to_string(flag(fd, request));
  struct stat st {};
  must(stat(slave_name(fd).c_str(), &st), "stat a slave");
  text += " " + std::to_string(st.st_uid) + ":" + std::to_string(st.st_gid) + " " + std::to_string(st.st_mode);
  pollfd p{fd, POLLIN | POLLPRI, 0};
  must(poll(&p, 1, 0), "poll");
  return text + " events " + std::to_string(p.revents);
}

std::string describe_slave(int fd) {
  char name[64] = {};
  expect(ttyname_r(fd, name, sizeof name) == 0, "a slave has no name");
  return std::string(name) + " " + describe_modes(fd) + " " + std::to_string(flag(fd, TIOCGEXCL)) + " " +
         std::to_string(fcntl(fd, F_GETFL));
}

/// Of one whose master is closed.
std::string describe_dead(int fd) {
  char byte;
  std::string text = std::to_string(read(fd, &byte, 1)) + " ";
  text += write(fd, "x", 1) == -1 ? std::to_string(errno) : "written";
  termios t{};
  text += tcgetattr(fd, &t) == -1 ? " " + std::to_string(errno) : " modes";
  pollfd p{fd, POLLIN | POLLOUT, 0};
  must(poll(&p, 1, 0), "poll");
  return text + " " + std::to_string(p.revents);
}

class Terminals {
 public:
  Terminals() {
    for (Pty& p : plain_) p = new_pty();
    const int gap = new_master();
    odd_ = new_pty();
    close(gap);
    set_up_odd();
    fresh_ = new_master(false);
    closed_ = new_master();
    close(open_slave(closed_));
    // The first number is used again by then.
    for (int& fd : dead_) {
      const Pty pty = new_pty();
      fd = pty.slave;
      close(pty.master);
    }
    one_way_ = open_slave(plain_[0].master, O_RDONLY | O_NONBLOCK);
    make_raw(plain_[1].slave);
    before_ = facts();
  }

  void verify() {
    const std::map<std::string, std::string> now = facts();
    for (const auto& [name, value] : before_)
      expect(now.at(name) == value, name + " is '" + now.at(name) + "', was '" + value + "'");
    expect_passes(plain_[1].master, plain_[1].slave, "to the slave", "a raw terminal");
    expect_passes(plain_[1].slave, plain_[1].master, "to the master", "a raw terminal");
    const Pty more = new_pty();
    expect_passes(more.slave, more.master, "of a new one", "a terminal that was made now");
    close(more.slave);
    close(more.master);
  }

 private:
  void set_up_odd() {
    termios t = modes_of(odd_.slave);
    t.c_iflag = IUTF8 | IGNCR | IXANY;
    t.c_oflag = OPOST | OCRNL;
    t.c_lflag = ICANON | ECHOK | NOFLSH | TOSTOP;
    for (int i = 0; i < 17; ++i) t.c_cc[i] = static_cast<cc_t>(1 + i);
    cfsetspeed(&t, B9600);
    must(tcsetattr(odd_.slave, TCSANOW, &t), "tcsetattr");
    const winsize size{61, 173, 1384, 976};
    must(ioctl(odd_.master, TIOCSWINSZ, &size), "TIOCSWINSZ");
    const int on = 1;
    must(ioctl(odd_.master, TIOCPKT, &on), "TIOCPKT");
    must(ioctl(odd_.slave, TIOCEXCL), "TIOCEXCL");
    if (geteuid() == 0) must(fchown(odd_.slave, 12345, 5), "fchown");
    must(fchmod(odd_.slave, 0640), "fchmod");
    must(ioctl(odd_.master, TIOCSPTLCK, &on), "TIOCSPTLCK");
  }

  std::map<std::string, std::string> facts() {
    std::map<std::string, std::string> f;
    int n = 0;
    for (const Pty& p : {plain_[0], plain_[1], plain_[2], odd_}) {
      f["master " + std::to_string(n)] = describe_master(p.master);
      f["slave " + std::to_string(n++)] = describe_slave(p.slave);
    }
    f["a second slave"] = describe_slave(one_way_);
    f["a fresh master"] = describe_master(fresh_);
    f["a master whose slave was closed"] = describe_master(closed_);
    for (const int fd : dead_) f["dead slave " + std::to_string(fd)] = describe_dead(fd);
    return f;
  }

  std::array<Pty, 3> plain_;
  Pty odd_;
  int fresh_ = -1, closed_ = -1, one_way_ = -1;
  std::array<int, 2> dead_{};
  std::map<std::string, std::string> before_;
};

}  // namespace

int main(int argc, char** argv) {
  return run(
      [&] {
        Workload w(argc, argv);
        Terminals terminals;
        w.serve([&] { terminals.verify(); });
      },
      "pty_modes");
}
