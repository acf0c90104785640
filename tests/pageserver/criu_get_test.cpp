// GET of CRIU's page server protocol: who gives pages against hostile requests, who asks against hostile answers.
#include <sys/mman.h>

#include <cstring>
#include <tuple>

#include "pageserver/criu_get_client.h"
#include "pageserver/criu_get_server.h"
#include "testing.h"

namespace migrate {
namespace {

using namespace migrate::testing;
using GetCommand = CriuRequest::Command;

constexpr MemoryId kGiven{MemoryId::Kind::task, 42};
constexpr uint64_t kFrom = 0x10000;

/// 100 pages, each full of its number, of which some are given.
GivenMemories memories() {
  Fd fd(::memfd_create("pages", MFD_CLOEXEC));
  for (uint64_t page = 0; page < 100; ++page)
    pwrite_full(fd.get(), std::vector<std::byte>(kPageSize, static_cast<std::byte>(page)), kFrom + page * kPageSize,
                "pages");
  PageSet pages(kFrom, kFrom + 90 * kPageSize);
  GivenMemories given;
  given.emplace(kGiven, GivenMemory{pages - PageSet(kFrom + 10 * kPageSize, kFrom + 12 * kPageSize), std::move(fd)});
  return given;
}

CriuRequest get(uint64_t page, uint64_t pages, MemoryId memory = kGiven) {
  return {.command = GetCommand::get, .pages = pages, .address = kFrom + page * kPageSize, .memory = memory};
}

TEST(CriuGet, NamesItsTaskAsItIs) {
  const auto bytes = encode_criu_request(get(0, 3));
  const unsigned char expected[32] = {7, 0, 0, 0, 0, 0, 0, 0, 3,  0, 0, 0, 0, 0, 0, 0,
                                      0, 0, 1, 0, 0, 0, 0, 0, 42, 0, 0, 0, 0, 0, 0, 0};
  EXPECT_EQ(std::memcmp(bytes.data(), expected, sizeof expected), 0);
  EXPECT_EQ(decode_criu_request(bytes).memory, kGiven);
  CriuRequest answer = get(0, 3);
  answer.command = GetCommand::add_f;
  answer.flags = CriuRequest::kPresent;
  EXPECT_EQ(decode_criu_answer(encode_criu_answer(answer)).memory, kGiven);
  EXPECT_THROW(decode_criu_answer(bytes), Corrupt);
}

TEST(CriuGet, GivesWhatWasAnnounced) {
  const GivenMemories given = memories();
  EXPECT_EQ(announced_pages(given), 88u);
  auto [mine, theirs] = raw_pair();
  auto server = std::async(std::launch::async, [&, s = std::move(theirs)]() mutable {
    int answered = 0;
    while (const auto request = read_get(*s, given, soon())) {
      if (request->command == GetCommand::close) {
        answer_close(*s);
      } else {
        EXPECT_TRUE(answer_get(*s, given, *request));
        ++answered;
      }
    }
    return answered;
  });
  CriuGetClient client(std::move(mine), std::chrono::seconds(20));
  // Three requests ahead, one larger than a piece.
  const AskedPages asked[] = {{kGiven, kFrom, 10}, {kGiven, kFrom + 12 * kPageSize, 78}, {kGiven, kFrom, 1}};
  for (const AskedPages& a : asked) client.ask(a);
  for (const AskedPages& a : asked) {
    std::vector<std::byte> into(a.pages * kPageSize);
    ASSERT_EQ(client.take(a, into), a.pages);
    for (uint64_t page = 0; page < a.pages; ++page)
      EXPECT_EQ(into[page * kPageSize + 7], static_cast<std::byte>((a.address - kFrom) / kPageSize + page));
  }
  client.close();
  EXPECT_EQ(server.get(), 3);
}

TEST(CriuGet, TellsWhetherItIsThatDump) {
  for (const auto& [here, there, right] :
       {std::tuple("run-1", "run-1", true), std::tuple("run-1", "run-2", false), std::tuple("run-1", "", true)}) {
    auto [mine, theirs] = raw_pair();
    auto server = std::async(std::launch::async, [&, s = std::move(theirs), there = std::string(there)]() mutable {
      for (int i = 0; i < 2; ++i) {
        const auto request = read_get(*s, {}, soon());
        const bool is = request->memory == kLazyDump || request->memory == lazy_dump(there);
        answer_parent(*s, is && !there.empty());  // CRIU's has none
      }
    });
    CriuGetClient client(std::move(mine), std::chrono::seconds(20));
    EXPECT_EQ(client.may_be(here), right) << there;
    server.get();
  }
}

TEST(CriuGet, RefusesWhatWasNotAnnounced) {
  const GivenMemories given = memories();
  struct Case {
    CriuRequest request;
    const char* words;
  };
  const MemoryId other{MemoryId::Kind::task, 43};
  for (const Case& c :
       {Case{get(9, 2), "not announced"}, Case{get(10, 1), "not announced"}, Case{get(89, 2), "not announced"},
        Case{get(95, 1), "not announced"}, Case{get(0, 0), "not announced"},
        Case{get(0, 1, other), "none were announced"}, Case{get(0, uint64_t{1} << 60), "out of range"},
        Case{get(0, 1, {MemoryId::Kind::task, 0}), "out of range"},
        Case{get(0, 1, {MemoryId::Kind::task, uint64_t{1} << 40}), "out of range"},
        Case{{.command = GetCommand::open2, .memory = kGiven}, "takes none"},
        Case{{.command = GetCommand::add, .pages = 1, .address = kFrom}, "takes none"}}) {
    auto [mine, theirs] = raw_pair();
    mine->write(encode_criu_request(c.request));
    try {
      read_get(*theirs, given, soon());
      ADD_FAILURE() << c.words;
    } catch (const Corrupt& e) {
      EXPECT_NE(std::string(e.what()).find(c.words), std::string::npos) << e.what();
    }
  }
}

TEST(CriuGet, ATaskThatIsGoneGivesNothing) {
  GivenMemories given = memories();
  ASSERT_EQ(::ftruncate(given.at(kGiven).fd.get(), kFrom + 5 * kPageSize), 0);
  auto [mine, theirs] = raw_pair();
  EXPECT_FALSE(answer_get(*theirs, given, get(4, 2))) << "of a task that has ended nothing is sent";
}

TEST(CriuGet, AnswersMustFit) {
  const AskedPages asked{kGiven, kFrom, 4};
  const auto answer = [&](GetCommand command, uint16_t flags, uint64_t pages, uint64_t address, MemoryId memory) {
    return encode_criu_answer(
        {.command = command, .flags = flags, .pages = pages, .address = address, .memory = memory});
  };
  constexpr uint16_t kHere = CriuRequest::kPresent;
  struct Case {
    std::array<std::byte, kCriuRequestSize> header;
    const char* words;
  };
  const Case cases[] = {
      {answer(GetCommand::add_f, kHere, 4, kFrom + kPageSize, kGiven), "not asked for"},
      {answer(GetCommand::add_f, kHere, 4, kFrom, {MemoryId::Kind::task, 43}), "not asked for"},
      {answer(GetCommand::add_f, kHere, 5, kFrom, kGiven), "more pages"},
      {answer(GetCommand::add_f, kHere, uint64_t{1} << 34, kFrom, kGiven), "more pages"},
      {answer(GetCommand::add_f, kHere, uint64_t{1} << 60, kFrom, kGiven), "out of range"},
      {answer(GetCommand::add_f, kHere, 0, kFrom, kGiven), "no such pages"},
      {answer(GetCommand::add_f, 0, 4, kFrom, kGiven), "no such pages"},
      {answer(GetCommand::add_f, CriuRequest::kInParent, 4, kFrom, kGiven), "no such pages"},
      {answer(GetCommand::get, kHere, 4, kFrom, kGiven), "carries no pages"},
      {answer(static_cast<GetCommand>(77), kHere, 4, kFrom, kGiven), "unknown kind"},
  };
  std::vector<std::byte> into(4 * kPageSize);
  for (const Case& c : cases) {
    auto [mine, theirs] = raw_pair();
    theirs->write(c.header);
    CriuGetClient client(std::move(mine), std::chrono::seconds(20));
    try {
      client.take(asked, into);
      ADD_FAILURE() << c.words;
    } catch (const Corrupt& e) {
      EXPECT_NE(std::string(e.what()).find(c.words), std::string::npos) << e.what();
    }
  }
  // Fewer than asked for is an answer; half a page, and none at all, are not.
  auto [mine, theirs] = raw_pair();
  theirs->write(answer(GetCommand::add_f, kHere, 3, kFrom, kGiven));
  theirs->write(std::vector<std::byte>(3 * kPageSize, std::byte{9}));
  theirs->write(answer(GetCommand::add_f, kHere, 1, kFrom, kGiven));
  theirs->write(std::vector<std::byte>(kPageSize / 2));
  CriuGetClient client(std::move(mine), std::chrono::milliseconds(50));
  EXPECT_EQ(client.take(asked, into), 3u);
  EXPECT_EQ(into[3 * kPageSize - 1], std::byte{9});
  EXPECT_THROW(client.take(asked, into), TimedOut);
  theirs->finish();
  EXPECT_THROW(client.take(asked, into), Disconnected);
}

}  // namespace
}  // namespace migrate
