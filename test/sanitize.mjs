// Runs tests of the native code under AddressSanitizer and UndefinedBehaviorSanitizer: `npm run test:sanitize`. The
// addon, llama.cpp and ggml are compiled for it in build/sanitize (four minutes on two cores, once; GCC on Linux).
// A report of either ends the process, and so fails a test. More arguments are Jest's, such as other tests.
import { execFileSync, spawnSync } from 'node:child_process';
import path from 'node:path';

const root = path.resolve(import.meta.dirname, '..');

// What compares with the stock runtime isn't here: its prebuilt ggml rounds in another way than one that is built from
// source for any computer.
const TESTS = [
    'test/fuzz',
    'test/native/(graph_patch|gguf_write|threads)',
    'test/search',
    'test/runtime',
    'test/repair',
    'test/evaluation/perplexity',
    'test/pipeline/isolated',
    'test/cli/(bad_input|resume)'
];

const flags = '-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g1';
const library = (name) => execFileSync('gcc', [`-print-file-name=${name}`], { encoding: 'utf8' }).trim();
const env = {
    ...process.env,
    BLOCKPRUNER_BUILD_FROM_SOURCE: '1',
    BLOCKPRUNER_BUILD_FOLDER: path.join(root, 'build', 'sanitize'),
    // ggml, the part that is C, multiplies the dimensions of a damaged file before it checks the product
    CFLAGS: `${flags} -fno-sanitize=signed-integer-overflow`,
    CXXFLAGS: flags,
    LD_PRELOAD: ['libasan.so', 'libubsan.so', 'libstdc++.so'].map(library).join(' '),
    ASAN_OPTIONS: 'detect_leaks=0', // Node.js leaves its memory to the system when it ends
    UBSAN_OPTIONS: 'print_stacktrace=1'
};

function run(...args) {
    const { status } = spawnSync(process.execPath, args, { cwd: root, env, stdio: 'inherit' });
    if (status !== 0) {
        process.exit(status ?? 1);
    }
}

const given = process.argv.slice(2);
run(path.join('install', 'build.js'));
run(
    '--experimental-vm-modules',
    '--disable-warning=ExperimentalWarning',
    'node_modules/jest/bin/jest.js',
    ...(given.length > 0 ? given : TESTS)
);
