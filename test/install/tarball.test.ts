// The package as users get it, where there is Node.js and a shell and nothing else: no compiler, CMake or Git.
import { execFileSync, spawnSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { temporaryFolder, tiny } from '../models';
import { shortSearch } from '../cli/run';

const root = path.resolve(__dirname, '../..');
const { dependencies } = JSON.parse(fs.readFileSync(path.join(root, 'package.json'), 'utf8')) as {
    dependencies: Record<string, string>;
};
const folder = temporaryFolder();
const at = (...names: string[]) => path.join(folder, ...names);

/** A command with nothing else on its PATH. */
function alone(command: string, ...args: string[]) {
    const env = { ...process.env, PATH: at('bin'), npm_config_script_shell: at('bin', 'sh') };
    return spawnSync(command, args, { cwd: at('project'), env, encoding: 'utf8' });
}

const installed = at('project', 'node_modules', 'blockpruner');
const prune = (output: string, ...options: string[]) => {
    const blockpruner = at('project', 'node_modules', '.bin', 'blockpruner');
    return alone(blockpruner, 'prune', tiny, '-o', at(output), ...shortSearch, ...options);
};

// as the package is made, the addon for this platform is in it
(process.platform === 'linux' && process.arch === 'x64' ? describe : describe.skip)('the package', () => {
    beforeAll(() => {
        fs.mkdirSync(at('bin'));
        fs.mkdirSync(at('project'));
        fs.symlinkSync(process.execPath, at('bin', 'node'));
        fs.symlinkSync('/bin/sh', at('bin', 'sh'));
        fs.writeFileSync(at('project', 'package.json'), '{}');
        execFileSync(process.execPath, [path.join(root, 'install', 'build.js'), '--prebuilt'], { stdio: 'pipe' });
        execFileSync('npm', ['pack', '--ignore-scripts', '--pack-destination', folder], { cwd: root, stdio: 'pipe' });
        const tarball = fs.readdirSync(folder).find((name) => name.endsWith('.tgz'))!;
        const npm = fs.realpathSync(execFileSync('which', ['npm'], { encoding: 'utf8' }).trim());
        const backends = `@node-llama-cpp/linux-x64@${dependencies['node-llama-cpp']}`;
        const options = ['--omit=optional', '--no-audit', '--no-fund', '--prefer-offline'];
        const { status, stderr } = alone(process.execPath, npm, 'install', ...options, at(tarball), backends);
        expect({ status, stderr: status === 0 ? '' : stderr }).toEqual({ status: 0, stderr: '' });
    }, 300_000);

    test('prunes without a compiler, verifies, and draws charts', () => {
        const { status, stdout, stderr } = prune('smaller.gguf', '--report', at('report.html'));
        expect(stderr).not.toMatch(/[Cc]ompil/);
        expect(status).toBe(0);
        expect(stdout).toContain('verified in the stock runtime');
        expect(fs.readFileSync(at('report.html'), 'utf8')).toMatch(/<svg[^>]+aria-label="Line chart: perplexity/);
    });

    test('is no more than 120 MB, with all that it depends on', () => {
        const modules = at('project', 'node_modules');
        const sizes = fs
            .readdirSync(modules, { recursive: true, withFileTypes: true })
            .filter((entry) => entry.isFile())
            .map(({ parentPath, name }) => fs.statSync(path.join(parentPath, name)).size);
        const bytes = sizes.reduce((sum, size) => sum + size, 0);
        expect(bytes).toBeGreaterThan(50e6);
        expect(bytes).toBeLessThan(120e6);
    });

    test('looks for ggml where it is, and has no folder of this one in it', () => {
        const addon = fs.readFileSync(path.join(installed, 'build', 'blockpruner.node'));
        expect(addon.includes('$ORIGIN/../../@node-llama-cpp/linux-x64/bins/linux-x64\0')).toBe(true);
        expect(addon.includes(root)).toBe(false);
    });

    test('needs no newer libraries than the backends that it runs on', () => {
        const versions = (file: string) =>
            new Set(fs.readFileSync(file, 'latin1').match(/(GLIBC|GLIBCXX)_\d+\.\d+(\.\d+)?(?=\0)/g));
        const bins = path.join(installed, '..', '@node-llama-cpp', 'linux-x64', 'bins', 'linux-x64');
        const files = fs.readdirSync(bins).filter((name) => name.endsWith('.so'));
        const newest = (all: string[], library: string) =>
            Math.max(
                ...all
                    .filter((name) => name.startsWith(`${library}_`))
                    .map((name) =>
                        Number(
                            name
                                .split('_')[1]!
                                .split('.')
                                .reduce((sum, part) => sum + part.padStart(3, '0'), '')
                                .padEnd(9, '0')
                        )
                    )
            );
        const ours = [...versions(path.join(installed, 'build', 'blockpruner.node'))];
        const theirs = files.flatMap((name) => [...versions(path.join(bins, name))]);
        for (const library of ['GLIBC', 'GLIBCXX']) {
            expect(newest(ours, library)).toBeLessThanOrEqual(newest(theirs, library));
        }
    });

    test('an addon that does not run is compiled anew, or it is said what that takes', () => {
        const addon = path.join(installed, 'prebuilds', 'linux-x64', 'blockpruner.node');
        fs.truncateSync(addon, fs.statSync(addon).size / 2);
        fs.rmSync(path.join(installed, 'build'), { recursive: true });
        const { status, stderr } = prune('never.gguf');
        expect(status).toBe(1);
        expect(stderr).toContain("The addon of the package doesn't run here");
        expect(stderr).toContain('this machine lacks CMake 3.21 or newer, a C++ compiler, Git');
        expect(fs.existsSync(at('never.gguf'))).toBe(false);
    });
});
