// CRIU's page server protocol: both ends against each other, and the server against hostile bytes.
#include "pageserver/criu_page_server.h"

#include <sys/mman.h>

#include <cstring>
#include <random>

#include "core/memory/page_files.h"
#include "pageserver/criu_page_client.h"
#include "pageserver/criu_protocol.h"
#include "testing.h"

namespace migrate {
namespace {

using namespace migrate::testing;
using Command = CriuRequest::Command;

constexpr MemoryId kTask{MemoryId::Kind::task, 42}, kObject{MemoryId::Kind::shmem, 7};

/// A server over a folder of its own, in a thread.
struct Served {
  explicit Served(const std::string& path, const std::string& parent = {}) : path_(path) {
    std::filesystem::create_directories(path);
    if (!parent.empty()) link_parent(open_path(path, O_RDONLY | O_DIRECTORY).get(), parent);
  }
  /// Gives the error's sentence, empty if there was none.
  std::string serve(std::unique_ptr<Stream> stream) {
    const Fd dir = open_path(path_, O_RDONLY | O_DIRECTORY);
    try {
      ImageSet images;
      PageFolder folder(dir.get(), images, true);
      stream->set_idle_timeout(std::chrono::seconds(5));
      serve_criu_pages(*stream, folder);
    } catch (const Error& e) {
      return e.what();
    }
    return {};
  }
  std::string path_;
};

std::vector<std::byte> request(Command command, uint64_t address = 0, uint64_t pages = 0, uint16_t flags = 0,
                               MemoryId memory = kTask) {
  const auto bytes =
      encode_criu_request({.command = command, .flags = flags, .pages = pages, .address = address, .memory = memory});
  return {bytes.begin(), bytes.end()};
}

std::string stored(const std::string& path, const std::string& name) {
  const Fd dir = open_path(path, O_RDONLY | O_DIRECTORY);
  PageImages images(dir.get());
  std::string text;
  for (const StoredPages& s : images.locate(name)) {
    for (uint64_t at = 0; at < s.bytes; at += kPageSize) {
      char c = 0;
      EXPECT_EQ(::pread(s.fd, &c, 1, static_cast<off_t>(s.offset + at)), 1);
      text += std::to_string((s.address + at) / kPageSize) + c + " ";
    }
  }
  return text;
}

std::vector<std::byte> filled(char c, uint64_t pages) {
  return std::vector<std::byte>(pages * kPageSize, static_cast<std::byte>(c));
}

TEST(CriuProtocol, RequestsHaveCriusLayout) {
  const auto bytes = encode_criu_request({.command = Command::add_f,
                                          .flags = CriuRequest::kPresent,
                                          .pages = 3,
                                          .address = 0x7f1234567000,
                                          .memory = kObject});
  const unsigned char expected[32] = {6, 0,    4,    0,    0,    0,    0, 0, 3, 0, 0, 0, 0, 0, 0, 0,
                                      0, 0x70, 0x56, 0x34, 0x12, 0x7f, 0, 0, 2, 7, 0, 0, 0, 0, 0, 0};
  EXPECT_EQ(std::memcmp(bytes.data(), expected, sizeof expected), 0);
}

TEST(CriuProtocol, RandomBytesAreRefusedOrInRange) {
  std::mt19937_64 random(1);
  int understood = 0;
  for (int i = 0; i < 200'000; ++i) {
    std::array<std::byte, kCriuRequestSize> bytes{};
    for (auto& b : bytes) b = static_cast<std::byte>(random());
    if (i % 2 == 0) {  // near misses: a known command, small numbers
      std::fill(bytes.begin(), bytes.end(), std::byte{0});
      for (int j = 0; j < 4; ++j) bytes[random() % bytes.size()] = static_cast<std::byte>(random() % 8);
    }
    try {
      const CriuRequest r = decode_criu_request(bytes);
      ++understood;
      if (r.command == Command::add || r.command == Command::hole || r.command == Command::add_f) {
        EXPECT_EQ(r.address % kPageSize, 0u);
        EXPECT_LE(r.address, uint64_t{1} << 47);
        EXPECT_LE(r.pages, (uint64_t{1} << 35));
      }
    } catch (const Corrupt&) {
    }
  }
  EXPECT_GT(understood, 100);
}

TEST(CriuPageServer, StoresAChainThatReadsBack) {
  TempDir temp;
  Served first(temp.path + "/1"), second(temp.path + "/2", "../1");
  {
    auto [mine, theirs] = raw_pair();
    auto server =
        std::async(std::launch::async, [&, s = std::move(theirs)]() mutable { return first.serve(std::move(s)); });
    CriuPageClient client(std::move(mine));
    EXPECT_FALSE(client.open(kTask));
    client.write(5 * kPageSize, filled('a', 700));  // more than a buffer
    EXPECT_FALSE(client.open(kObject));
    client.write(0, filled('s', 1));
    client.finish();
    EXPECT_EQ(server.get(), "");
  }
  auto [mine, theirs] = raw_pair();
  auto server =
      std::async(std::launch::async, [&, s = std::move(theirs)]() mutable { return second.serve(std::move(s)); });
  CriuPageClient client(std::move(mine));
  EXPECT_TRUE(client.open(kTask));
  client.in_parent(5 * kPageSize, 1);
  client.write(6 * kPageSize, filled('b', 1));
  client.in_parent(704 * kPageSize, 1);
  EXPECT_FALSE(client.open({MemoryId::Kind::shmem, 8}));
  client.finish();
  EXPECT_EQ(server.get(), "");
  EXPECT_EQ(stored(second.path_, "pagemap-42.img"), "5a 6b 704a ");
  EXPECT_EQ(stored(first.path_, "pagemap-shmem-7.img"), "0s ");
}

TEST(CriuPageServer, OlderRequestsMeanTheSame) {
  TempDir temp;
  Served first(temp.path + "/1"), second(temp.path + "/2", "../1");
  for (Served* served : {&first, &second}) {
    auto [mine, theirs] = raw_pair();
    auto server =
        std::async(std::launch::async, [&, s = std::move(theirs)]() mutable { return served->serve(std::move(s)); });
    mine->write(request(Command::parent));
    std::byte has[4]{};
    ASSERT_TRUE(mine->read_exact(has));
    EXPECT_EQ(has[0], served == &second ? std::byte{1} : std::byte{0});
    mine->write(request(Command::open));
    if (served == &second) mine->write(request(Command::hole, 0, 1));
    mine->write(request(Command::add, served == &second ? kPageSize : 0, 1));
    mine->write(filled(served == &second ? 'b' : 'a', 1));
    mine->write(request(Command::add_f, 9 * kPageSize, 1, CriuRequest::kLazy));
    mine->write(request(Command::force_close));
    std::byte status[4]{std::byte{9}};
    ASSERT_TRUE(mine->read_exact(status));
    EXPECT_EQ(status[0], std::byte{0});
    EXPECT_EQ(server.get(), "");
  }
  EXPECT_EQ(stored(second.path_, "pagemap-42.img"), "0a 1b ");
}

TEST(CriuPageServer, RefusesWhatItCannotServe) {
  struct Case {
    std::vector<std::vector<std::byte>> sent;
    std::string error;
  };
  const std::vector<Case> cases = {
      {{request(Command::add, 0, 1), filled('x', 1)}, "no memory"},
      {{request(Command::open), request(Command::hole, 0, 1)}, "missing there"},
      {{request(Command::open), request(Command::open)}, "twice"},
      {{request(Command::open), request(Command::add, 1, 1)}, "out of range"},
      {{request(Command::open), request(Command::add, 0, ~uint64_t{0})}, "out of range"},
      {{request(Command::open), request(Command::add, 0, uint64_t{1} << 30), filled('x', 3)}, "in the middle"},
      {{request(Command::open), request(Command::add, 0, 1), {std::byte{1}}}, "in the middle"},
      {{request(Command::open2, 0, 0, 0, {static_cast<MemoryId::Kind>(3), 1})}, "unknown kind"},
      {{request(Command::open2, 0, 0, 0, {MemoryId::Kind::task, uint64_t{1} << 40})}, "out of range"},
      {{request(Command::get, 0, 1)}, "lazy"},
      {{request(Command::open), request(Command::add_f, 0, 1, 8)}, "unknown flags"},
      {{{std::byte{1}, std::byte{2}}}, "middle"},
      {{}, "left"},
  };
  TempDir temp;
  int number = 0;
  for (const Case& c : cases) {
    Served served(temp.path + "/" + std::to_string(++number));
    auto [mine, theirs] = raw_pair();
    for (const auto& bytes : c.sent) mine->write(bytes);
    mine->finish();
    const std::string error = served.serve(std::move(theirs));
    EXPECT_NE(error.find(c.error), std::string::npos) << number << ": " << error;
    // Nothing that a restore would take.
    EXPECT_FALSE(std::filesystem::exists(served.path_ + "/pagemap-42.img")) << number;
  }
}

TEST(CriuPageServer, SurvivesRandomConversations) {
  TempDir temp;
  std::mt19937_64 random(3);
  int in_order = 0, refused = 0;
  for (int i = 0; i < 150; ++i) {
    Served served(temp.path + "/f");
    auto [mine, theirs] = raw_pair();
    std::vector<std::byte> talk;
    const int requests = static_cast<int>(random() % 12);
    for (int n = 0; n < requests; ++n) {
      const Command commands[] = {Command::open, Command::add, Command::hole, Command::add_f, Command::close};
      auto bytes = request(commands[random() % 5], (random() % 16) * kPageSize, random() % 3,
                           static_cast<uint16_t>(random() % 8), {MemoryId::Kind::task, random() % 3});
      if (random() % 4 == 0) bytes[random() % bytes.size()] ^= static_cast<std::byte>(1 << random() % 8);
      talk.insert(talk.end(), bytes.begin(), bytes.end());
      if (random() % 3 == 0) talk.resize(talk.size() + random() % (3 * kPageSize));
    }
    auto writer = std::async(std::launch::async, [&] {
      try {
        mine->write(talk);
        mine->finish();
      } catch (const Error&) {  // the server has had enough
      }
    });
    // It ends, with a sentence or in order, and what it stored can be read: whole pages, nowhere but there.
    const std::string sentence = served.serve(std::move(theirs));
    writer.get();
    if (sentence.empty()) {
      ++in_order;
    } else {
      ++refused;
    }
    for (const auto& file : std::filesystem::directory_iterator(served.path_)) {
      const std::string name = file.path().filename();
      EXPECT_TRUE(name.starts_with("pages-") || name.starts_with("pagemap-")) << name;
      EXPECT_TRUE(!name.starts_with("pages-") || file.file_size() % kPageSize == 0) << name;
    }
    std::filesystem::remove_all(served.path_);
  }
  EXPECT_GT(in_order, 0);
  EXPECT_GT(refused, 50);
}

TEST(CriuPageServer, BareTlsBothWays) {
  TempDir temp;
  const std::string keys = temp.path + "/keys";
  make_keys({.dir = keys, .names = {"source", "destination"}});
  make_keys({.dir = temp.path + "/other", .names = {"source"}});
  TlsConfig client_config = tls_config(keys, "source"), server_config = tls_config(keys, "destination");
  client_config.bare = server_config.bare = true;
  const auto meet = [&](const TlsConfig& client, const std::string& name) {
    Pair p = tcp_pair();
    return both([&] { return TlsContext(client).connect(std::move(p.client), name, soon()); },
                [&] { return TlsContext(server_config).accept(std::move(p.server), soon()); });
  };
  {
    auto [c, s] = meet(client_config, "destination");
    ASSERT_TRUE(c.stream && s.stream) << c.error << s.error;
    Served served(temp.path + "/1");
    auto server =
        std::async(std::launch::async, [&, t = std::move(s.stream)]() mutable { return served.serve(std::move(t)); });
    CriuPageClient client(std::move(c.stream));
    client.open(kTask);
    client.write(0, filled('t', 1000));
    client.finish();
    EXPECT_EQ(server.get(), "");
    EXPECT_EQ(stored(served.path_, "pagemap-42.img").substr(0, 6), "0t 1t ");
  }
  {
    auto [c, s] = meet(client_config, "elsewhere");
    EXPECT_NE(c.error.find("not for elsewhere"), std::string::npos) << c.error;
  }
  {
    TlsConfig any = client_config;
    any.any_server_name = true;
    auto [c, s] = meet(any, "elsewhere");
    EXPECT_TRUE(c.stream && s.stream) << c.error << s.error;
  }
  {
    // Of another CA: the server refuses in its handshake; the client learns it with its first answer, at the latest.
    TlsConfig stranger = tls_config(temp.path + "/other", "source");
    stranger.cacert = client_config.cacert;
    stranger.bare = true;
    auto [c, s] = meet(stranger, "destination");
    EXPECT_TRUE(s.refused) << s.error;
    if (c.stream) {
      CriuPageClient client(std::move(c.stream));
      EXPECT_THROW(client.open(kTask), Error);
    }
  }
}

}  // namespace
}  // namespace migrate
